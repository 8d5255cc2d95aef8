"""One question to one peer: what do these blocks make of these hidden states? Asked as any session would be."""

import asyncio
import secrets

import torch
from torch import Tensor

from clients.chain import Chain
from clients.client import Client
from clients.pending import Pending, Wanted
from fault.mend import Leg
from routing.chains import Hop
from swarm.codecs import encode
from swarm.errors import NetworkError, Unreachable
from swarm.ids import RowId, SessionId
from swarm.messages import Open, Out, Ready, Step, StepRow

__all__ = ["probe"]

_ROW = RowId(1)
_CODEC = "fp32"


async def probe(client: Client, hop: Hop, hidden: Tensor, seconds: float) -> Tensor:
    """What `hop` makes of a row's first hidden states [n, hidden], in float32. Nothing of it is shared with other
    sessions there. Raises NetworkError when it does not answer within `seconds`, or not with that."""
    chain = Chain(lambda: None)  # one answer is all that is wanted, whoever leaves then
    leg = Leg(hop, SessionId(secrets.token_bytes(16)))
    try:
        async with asyncio.timeout(seconds):
            stream = await client.hops.to(hop.contact)
            opening = Open(
                session=leg.session,
                model=client.model.digest,
                hop=hop.span,
                codec=_CODEC,
                prev=client.me.peer,
                next=None,
                lease=len(hidden),
            )
            answer = await chain.open(leg, stream, [opening.pack()], client.open_seconds)
            if not isinstance(answer, Ready):
                raise Unreachable(f"peer {hop.peer} takes no further session now")
            chain.adopt([leg])
            row = StepRow(_ROW, 0, len(hidden), 0)
            chain.post(leg, Step(leg.session, (row,), _CODEC, encode(hidden, _CODEC)).pack())
            return await _outputs(chain, hop, hidden)
    except TimeoutError:
        raise NetworkError(f"peer {hop.peer} did not answer within {seconds:g} s") from None
    finally:
        chain.close()


async def _outputs(chain: Chain, hop: Hop, hidden: Tensor) -> Tensor:
    pending = Pending({_ROW: Wanted(0, len(hidden))}, hidden.shape[1], torch.float32)
    while not pending.done:
        _, message = await chain.next_event()
        if not isinstance(message, Out):
            raise NetworkError(f"peer {hop.peer} did not compute: {message}")
        pending.take(message)  # raises WireError for what is no answer
    return pending.result()
