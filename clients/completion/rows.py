"""What a lane computes: rows of tokens, and the choices that they are computed for."""

from dataclasses import dataclass, field

from clients.completion.choosing import Chooser
from clients.completion.handle import Handle
from clients.completion.request import Request
from swarm.ids import RowId

__all__ = ["Choice", "Job", "Row"]


@dataclass(slots=True, eq=False)
class Job:
    """A request that has a place in a lane."""

    request: Request
    handle: Handle
    open: set[int] = field(default_factory=set)  # choices that have not ended

    def __post_init__(self) -> None:
        self.open.update(range(self.request.choices))


@dataclass(slots=True, eq=False)
class Choice:
    """One answer to a request."""

    job: Job
    index: int
    chooser: Chooser
    made: int = 0  # tokens of the answer
    next: int = 0  # the last of them

    @property
    def wanted(self) -> bool:
        return self.index in self.job.open and self.job.handle.wants(self.index)


@dataclass(slots=True, eq=False)
class Row:
    """A row of the lane's session, under `id` once it is there. The session has the first `done` of `tokens`; with a
    `source` it has none yet, but is to begin as a copy of that row's first `done`. All choices of a request share one
    row until their tokens differ."""

    tokens: list[int]
    done: int = 0
    id: RowId | None = None
    source: "Row | None" = None
    choices: list[Choice] = field(default_factory=list)
    shared: int = 0  # of its first tokens, with the row that it was copied from: they take no room of their own
    private: bool = False  # nobody else may go on from it
    used: float = 0.0  # seconds: when it was complete, or last copied

    @property
    def left(self) -> int:
        """Tokens that have to be computed before the next one can be chosen."""
        return len(self.tokens) - self.done

    @property
    def own(self) -> int:
        """Tokens for which it takes room."""
        return len(self.tokens) - self.shared

    @property
    def coming(self) -> int:
        """Tokens that may follow those that are known."""
        return max((choice.job.request.max_new_tokens - choice.made for choice in self.choices), default=0)

    @property
    def origin(self) -> RowId:
        """The session's row that it is, or begins as a copy of."""
        row = self
        while row.source is not None:
            row = row.source
        assert row.id is not None  # what is copied was computed
        return row.id

    @property
    def held(self) -> bool:
        """Whether it has to wait for its reader."""
        return any(choice.job.handle.behind for choice in self.choices)
