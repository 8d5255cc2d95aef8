"""Which rows go into the next step, and with how many of their tokens.

Answers that go on come first, all of them; prompts fill up, in the order in which they came, in pieces so small that no
answer waits long for its next token. Where more wait for their first token than for a next one, pieces are larger.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from clients.completion.limits import Limits
from clients.completion.rows import Row

__all__ = ["Piece", "plan"]

SHORT = 16  # tokens: what is as short as this counts as an answer that goes on, here and at the peers


@dataclass(frozen=True, slots=True)
class Piece:
    """The next `n` tokens of a row."""

    row: Row
    n: int

    @property
    def wanted(self) -> bool:
        """Whether it is the last that has to be computed before a token can be chosen."""
        return self.n == self.row.left


def plan(rows: Iterable[Row], limits: Limits) -> list[Piece]:
    """The next step; empty when there is nothing to compute. `rows` in the order in which they came."""
    ready = [row for row in rows if row.left and not row.held]
    pieces = [Piece(row, row.left) for row in ready if row.left <= SHORT]
    prompts = [row for row in ready if row.left > SHORT]
    room = limits.prompt_tokens
    if pieces:
        room = min(room, limits.beside_tokens * max(1, len(prompts) // len(pieces)))
    for row in prompts:
        if room <= 0:
            break
        pieces.append(Piece(row, min(row.left, room)))
        room -= row.left
    return pieces
