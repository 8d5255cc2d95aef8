"""What a fuzzer begins with: one good example of everything that has a shape."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import msgpack

from clients.federated.frames import framed, sealed
from swarm.ids import Digest, RowId, SessionId, Span
from swarm.messages import (
    Busy,
    Close,
    Contact,
    Fault,
    FaultCode,
    Fork,
    ForkEntry,
    Message,
    Open,
    Out,
    PageKeys,
    Ping,
    Pong,
    Ready,
    Relink,
    Resend,
    Step,
    StepRow,
)
from swarm.sealing import seal, seal_presence
from swarm.training import (
    Adapter,
    Backward,
    Collect,
    Forward,
    Gradients,
    MicroBatch,
    Missing,
    Passed,
    TensorSpec,
    Train,
    Tuned,
)
from swarm.wire import decode
from tests.fuzz.targets import ME, OWNER, RUN, RUN_KEY
from tests.swarm.records import presence_of, record_of

__all__ = ["MESSAGES", "seeds"]

NAME, OTHER = SessionId(bytes(16)), SessionId(b"o" * 16)
DIGEST, HOP = Digest("ab" * 32), Span(0, 4)
KEY = bytes(32)
ROWS = (StepRow(RowId(1), 0, 1, 0), StepRow(RowId(2), 3, 2, 5))
BATCH = MicroBatch(1, (2, 3), ((0, KEY),), 7)
NEXT = Contact(ME.peer_id, (f"/ip4/192.0.2.7/tcp/1/p2p/{ME.peer_id}",))
TUNED = Tuned("self_attn.q_proj", "lora", 2.0, 0.0, (TensorSpec("A", "fp32", (1, 2)),))

MESSAGES: Sequence[Message] = (
    Open(NAME, DIGEST, HOP, "fp32", ME.peer_id, NEXT, 64, {RowId(1): 3}, OTHER, True, ((0, KEY),)),
    Open(NAME, DIGEST, HOP, "int8", ME.peer_id, None, 0, hosted="ab" * 16),
    Ready(NAME),
    Step(
        NAME,
        ROWS,
        "fp32",
        bytes(48),
        trace=((1.0, 2.0),),
        page_size=16,
        pages=(PageKeys(RowId(1), 0, (KEY, KEY)),),
        depths=(3,),
    ),
    Out(NAME, ROWS, "bf16", bytes(24)),
    Relink(NAME, ME.peer_id, True, NEXT, (Resend(RowId(1), 0, 2),), OTHER, True),
    Fork(NAME, (ForkEntry(RowId(1), 1, RowId(3)),), (RowId(1),)),
    Ping(NAME, 1),
    Pong(NAME, 1, {RowId(1): 5}, 2),
    Fault(NAME, FaultCode.GAP, "a row stands elsewhere", ME.peer_id),
    Busy(NAME, 1.0, "no room"),
    Close(NAME),
    Train(NAME, DIGEST, HOP, "fp32"),
    Adapter(NAME, KEY, (TUNED,), bytes(8)),
    Forward(NAME, BATCH, True, "fp32", bytes(20), "int8"),
    Backward(NAME, BATCH, True, "grad8", bytes(20), False, "fp32", "grad4", 9),
    Collect(NAME, 9, 2, "grad4"),
    Passed(NAME, 1, "fp32", bytes(20), 0.5),
    Gradients(NAME, 1, 0, True, "fp32", bytes(8), 0.5),
    Missing(NAME, 1, (KEY,)),
)


def seeds(target: str) -> list[bytes]:
    """For one of `tests.fuzz.targets.TARGETS`."""
    return list(_SEEDS[target])


def _packed_header(message: Message) -> bytes:
    packed: bytes = msgpack.packb(dict(decode(message.pack()).header))
    return packed


def _payload(packed: bytes) -> bytes:
    payload: bytes = msgpack.unpackb(packed)[0]
    return payload


_FRAMES = [message.pack() for message in MESSAGES]
_RECORD = seal(record_of(ME.peer_id, adapters=(("french", "ab" * 16),), near=((ME.peer_id, 0.1),)), ME)
_PRESENCE = seal_presence(presence_of(ME.peer_id, RUN.peer_id), ME, RUN)
_CLAIM = sealed(ME, RUN_KEY, round=1, base=KEY, delta=KEY, tokens=3, loss=1.5)
_TALLY = sealed(ME, RUN_KEY, claims=[_CLAIM.pack()], signed=[_CLAIM.pack()])
_INVITE = replace(OWNER, addresses=NEXT.addresses)

_SEEDS: Mapping[str, Sequence[bytes]] = {
    "frame": _FRAMES,
    "message": _FRAMES,
    "header": [_packed_header(message) for message in MESSAGES],
    "record": [_RECORD, _payload(_RECORD)],
    "presence": [_PRESENCE, _payload(_PRESENCE)],
    "invite": [_INVITE.text().encode("latin-1")],
    "shown": [OWNER.show(ME.peer_id)],
    "member": [framed(_CLAIM), framed(_TALLY), _TALLY.payload],
    "contact": [_packed_header(message) for message in MESSAGES if isinstance(message, Open | Relink)],
}
