"""What a hop sends once more: outputs of its sessions that it has kept."""

from collections import deque
from dataclasses import replace

import torch
from torch import Tensor

from peers.hop_session import HopSession
from peers.outbox import Outbox
from swarm.messages import Resend, StepRow

__all__ = ["kept"]


def kept(
    outbox: Outbox, session: HopSession, resends: deque[Resend], room: int, *, last: bool
) -> tuple[tuple[StepRow, ...], Tensor] | None:
    """The next `room` tokens of `resends`, taken off them: rows, and their outputs `[sum n, hidden]`; None when that is
    no longer kept. `last`: whether they go to the client, who needs only what it wants."""
    rows: list[StepRow] = []
    outputs: list[Tensor] = []
    while resends and room:
        resend = resends[0]
        stop = session.position(resend.row)
        if not outbox.keeps(session.id) or outbox.length(session.id, resend.row) < stop:
            return None
        start = max(resend.start, resend.want) if last else resend.start
        n = min(room, stop - start)
        if n > 0:
            rows.append(StepRow(resend.row, start, n, resend.want))
            outputs.append(outbox.read(session.id, resend.row, start, start + n))
            room -= n
        if n <= 0 or start + n == stop:
            resends.popleft()
        else:
            resends[0] = replace(resend, start=start + n)
    return tuple(rows), torch.cat(outputs) if outputs else torch.empty(0)
