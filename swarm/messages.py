"""What peers say to each other: the frames of a session, as values.

Positions count tokens of one row from 0. A row id is never used for two contents: what cuts or copies a row makes a new
id (`Fork`), so a lost frame can lead to a gap, which is noticed, but never to stale tokens taken for known ones.

| message  | way                 | meaning                                                              |
|----------|---------------------|----------------------------------------------------------------------|
| Open     | client → hop        | compute blocks `hop` for `session`; who comes before and after        |
| Ready    | hop → client        | the session is open here                                             |
| Step     | … → hop → next hop  | new hidden states of some rows                                       |
| Out      | last hop → client   | final hidden states of the positions that were asked for             |
| Relink   | client → hop        | a new next or previous hop; what of the outbox to send (again)       |
| Fork     | … → hop → next hop  | copy rows up to a position under new ids, then drop rows             |
| Ping     | client → hop        | answered at once: the peer lives, what was sent before has arrived   |
| Pong     | hop → client        | where every row stands                                               |
| Fault    | hop → client        | a code, a sentence, and the peer it is about                         |
| Busy     | hop → client        | no room; when to ask again                                           |
| Close    | client → hop        | forget the session                                                   |

Fine-tuning has frames of its own: `swarm.training`.

Every `parse` raises WireError on a frame that is not exactly what its class describes; unknown fields are ignored.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import ClassVar, Self

from swarm import fields
from swarm.errors import UsageError, WireError
from swarm.fields import CODECS, KEY_BYTES, MAX_KEYS, MAX_POSITION, MAX_ROWS, MAX_TEXT, Contact
from swarm.ids import Digest, PeerId, RowId, SessionId, Span
from swarm.training import TRAINING, AdapterKeys, TrainingMessage, pack_keys, read_keys
from swarm.wire import Frame, decode, encode

__all__ = [
    "CODECS",
    "KEY_BYTES",
    "MAX_KEYS",
    "MAX_POSITION",
    "MAX_ROWS",
    "PROTOCOL",
    "Busy",
    "Close",
    "Contact",
    "Fault",
    "FaultCode",
    "Fork",
    "ForkEntry",
    "HiddenStates",
    "Message",
    "Open",
    "Out",
    "PageKeys",
    "Ping",
    "Pong",
    "Ready",
    "Relink",
    "Resend",
    "Step",
    "StepRow",
    "parse",
]

PROTOCOL = "/swarm/1/session"


class FaultCode(StrEnum):
    """Why a hop could not go on; the client decides what to do from the code alone."""

    GAP = "gap"  # a step starts beyond what this hop has: something was lost before it
    BAD_INPUT = "bad-input"  # the previous hop sent NaN, a wrong shape or a wrong position
    NO_OUTBOX = "no-outbox"  # what a Relink asks to send again is no longer kept
    UNKNOWN_SESSION = "unknown-session"
    UNREACHABLE = "unreachable"  # `peer`, the next hop, cannot be reached from here
    LINK_LOST = "link-lost"  # the stream to the next hop broke and was made anew; what was on it may be lost
    REFUSED = "refused"  # wrong model, blocks not held, limits: asking again is useless
    EXECUTOR = "executor"  # the hop's device process failed; its sessions are gone
    DRAINING = "draining"  # the peer is leaving: it takes no new session, and those it has had better move on


@dataclass(frozen=True, slots=True)
class StepRow:
    """Tokens `[at, at + n)` of `row`. Outputs are wanted from position `want` on (`at + n` or more: none)."""

    row: RowId
    at: int
    n: int
    want: int


@dataclass(frozen=True, slots=True)
class PageKeys:
    """What the sender calls full pages of `row`, from page `first` on; a key stands for the row up to a page's end."""

    row: RowId
    first: int
    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Resend:
    """Send the outbox of `row` from `start` on; the last hop, only from `want` on."""

    row: RowId
    start: int
    want: int


@dataclass(frozen=True, slots=True)
class ForkEntry:
    """Row `dst` begins as the first `at` tokens of row `src`. Nothing happens where `dst` exists."""

    src: RowId
    at: int
    dst: RowId


def _page_keys(value: object) -> PageKeys:
    entry = fields.entries(value, "a row's pages", 3)
    if len(entry) != 3:
        raise WireError("a row's pages are a row, the first page, and keys")
    row, first = fields.wholes(entry[:2], 2, "a row's first page")
    return PageKeys(RowId(row), first, fields.keys(entry[2]))


def _hosted(value: object) -> str | None:
    return None if value is None else fields.text(value, "an adapter's digest", 64)


# --- the messages ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Open:
    """`lease`: tokens over all rows to reserve. `sent`: per row, the position up to which the next hop already has this
    hop's output (it survived a recovery), so that only later outputs are sent on; 0 where a row is not named.

    Every hop of a chain knows the session under an id of its own, so that one peer can be two hops of a chain;
    `next_session` is the id to put on frames to the next hop (None: the same id).

    `share`: what is computed here may be used for other sessions whose rows begin alike, and the other way round. Who
    shares can tell from the time an answer takes whether somebody has sent the same beginning before.

    `adapters`: the adapter of each block that has one; those outside of `hop` are ignored. A hop that lacks some of the
    others answers Missing, takes them as Adapter frames over the same stream, and wants the Open again. `hosted`: the
    digest of an adapter that the hop has of its own; there are no `adapters` then."""

    kind: ClassVar[str] = "open"
    session: SessionId
    model: Digest
    hop: Span
    codec: str
    prev: PeerId
    next: Contact | None  # None: this is the last hop, outputs go to the client
    lease: int
    sent: Mapping[RowId, int] = field(default_factory=dict)
    next_session: SessionId | None = None
    share: bool = False
    adapters: AdapterKeys = ()
    hosted: str | None = None

    @property
    def own_adapters(self) -> AdapterKeys:
        """Those of the hop's blocks, in their order."""
        return tuple(sorted((block, key) for block, key in self.adapters if block in self.hop))

    def pack(self) -> bytes:
        return encode(
            {
                "kind": self.kind,
                "session": self.session,
                "model": self.model,
                "hop": [self.hop.start, self.hop.end],
                "codec": self.codec,
                "prev": self.prev,
                "next": fields.pack_contact(self.next),
                "lease": self.lease,
                "sent": [[row, at] for row, at in self.sent.items()],
                "next_session": self.next_session,
                "share": self.share,
                "adapters": pack_keys(self.adapters),
                "hosted": self.hosted,
            }
        )

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        start, end = fields.wholes(fields.get(header, "hop"), 2, "a hop")
        try:
            hop = Span(start, end)
        except UsageError as error:
            raise WireError(str(error)) from None
        adapters, hosted = read_keys(header.get("adapters", [])), _hosted(header.get("hosted"))
        if adapters and hosted is not None:
            raise WireError("a session has adapters that are sent, or one that is hosted, not both")
        return cls(
            session=fields.session_of(header),
            model=Digest(fields.text(fields.get(header, "model"), "a digest", 64)),
            hop=hop,
            codec=fields.codec_of(header),
            prev=PeerId(fields.text(fields.get(header, "prev"), "a peer id", 128)),
            next=fields.contact_or_none(fields.get(header, "next")),
            lease=fields.whole(fields.get(header, "lease"), 0, MAX_ROWS * MAX_POSITION, "a lease"),
            sent=fields.positions(header.get("sent", [])),
            next_session=fields.next_session_of(header),
            share=header.get("share") is True,
            adapters=adapters,
            hosted=hosted,
        )


@dataclass(frozen=True, slots=True)
class Ready:
    kind: ClassVar[str] = "ready"
    session: SessionId

    def pack(self) -> bytes:
        return encode({"kind": self.kind, "session": self.session})

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        return cls(fields.session_of(frame.header))


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """What Step and Out have in common. `body`: hidden states `[sum n, hidden]` in `codec`, rows one after another.
    `trace`: (queue ms, compute ms) of each hop that these tokens have passed. `depths`: how many tokens are at each of
    these peers, on average over the last seconds; None, or left out at the end, of those that do not say."""

    kind: ClassVar[str]
    session: SessionId
    rows: tuple[StepRow, ...]
    codec: str
    body: bytes | memoryview
    trace: tuple[tuple[float, float], ...] = ()
    depths: tuple[int | None, ...] = ()

    def header(self) -> dict[str, object]:
        header: dict[str, object] = {
            "kind": self.kind,
            "session": self.session,
            "rows": [[r.row, r.at, r.n, r.want] for r in self.rows],
            "codec": self.codec,
            "trace": self.trace,
        }
        return {**header, "depths": self.depths} if self.depths else header

    def pack(self) -> bytes:
        return encode(self.header(), self.body)

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        entries = fields.entries(fields.get(frame.header, "rows"), "rows")
        rows = tuple(
            StepRow(RowId(r), at, n, want) for r, at, n, want in (fields.wholes(e, 4, "a row") for e in entries)
        )
        if not rows or any(row.n < 1 or row.at + row.n > MAX_POSITION for row in rows):
            raise WireError("a step brings at least one token for each of its rows")
        if len({row.row for row in rows}) != len(rows):
            raise WireError("a step names each row once")
        trace = fields.trace_of(frame.header)
        return cls(
            fields.session_of(frame.header),
            rows,
            fields.codec_of(frame.header),
            frame.body,
            trace,
            fields.depths_of(frame.header, len(trace)),
        )


@dataclass(frozen=True, slots=True)
class Step(HiddenStates):
    """`pages`: what a hop that shares its work with other sessions calls the pages that end in these rows; each has
    `page_size` tokens."""

    kind: ClassVar[str] = "step"
    page_size: int = 0
    pages: tuple[PageKeys, ...] = ()

    def header(self) -> dict[str, object]:
        pages = [[p.row, p.first, b"".join(p.keys)] for p in self.pages]
        return {**super(Step, self).header(), "page_size": self.page_size, "pages": pages}

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        step = super(Step, cls).parse(frame)
        header = frame.header
        pages = tuple(_page_keys(entry) for entry in fields.entries(header.get("pages", []), "pages"))
        if sum(len(p.keys) for p in pages) > MAX_KEYS:
            raise WireError(f"a step names at most {MAX_KEYS} pages")
        size = fields.whole(header.get("page_size", 0), 0, MAX_POSITION, "a page size")
        return replace(step, page_size=size, pages=pages)


@dataclass(frozen=True, slots=True)
class Out(HiddenStates):
    """Final hidden states: for each row positions `[at, at + n)`, all of them wanted (`want` repeats `at`)."""

    kind: ClassVar[str] = "out"


@dataclass(frozen=True, slots=True)
class Relink:
    """Any of: a new previous hop; a new next hop with what to send it from the outbox. `to_next` says whether `next` is
    given at all, since None there means that this hop is now the last.

    `aside`: the hop goes on sending to its next hop; `resend` is for `next`, who is to take over from that one."""

    kind: ClassVar[str] = "relink"
    session: SessionId
    prev: PeerId | None = None
    to_next: bool = False
    next: Contact | None = None
    resend: tuple[Resend, ...] = ()
    next_session: SessionId | None = None
    aside: bool = False

    def pack(self) -> bytes:
        return encode(
            {
                "kind": self.kind,
                "session": self.session,
                "prev": self.prev,
                "to_next": self.to_next,
                "next": fields.pack_contact(self.next),
                "resend": [[r.row, r.start, r.want] for r in self.resend],
                "next_session": self.next_session,
                "aside": self.aside,
            }
        )

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        entries = (fields.wholes(e, 3, "a resend") for e in fields.entries(header.get("resend", []), "resend"))
        return cls(
            session=fields.session_of(header),
            prev=fields.peer_or_none(header.get("prev")),
            to_next=header.get("to_next") is True,
            next=fields.contact_or_none(header.get("next")),
            resend=tuple(Resend(RowId(row), start, want) for row, start, want in entries),
            next_session=fields.next_session_of(header),
            aside=header.get("aside") is True,
        )


@dataclass(frozen=True, slots=True)
class Fork:
    """Makes the `forks`, then forgets the rows in `drop`; safe to repeat. `onward`: pass it to the next hop."""

    kind: ClassVar[str] = "fork"
    session: SessionId
    forks: tuple[ForkEntry, ...] = ()
    drop: tuple[RowId, ...] = ()
    onward: bool = True

    def pack(self) -> bytes:
        return encode(
            {
                "kind": self.kind,
                "session": self.session,
                "forks": [[f.src, f.at, f.dst] for f in self.forks],
                "drop": list(self.drop),
                "onward": self.onward,
            }
        )

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        forks = (fields.wholes(e, 3, "a fork") for e in fields.entries(header.get("forks", []), "forks"))
        drop = (
            fields.whole(row, 0, 2 * MAX_POSITION, "a row id") for row in fields.entries(header.get("drop", []), "drop")
        )
        return cls(
            session=fields.session_of(header),
            forks=tuple(ForkEntry(RowId(src), at, RowId(dst)) for src, at, dst in forks),
            drop=tuple(RowId(row) for row in drop),
            onward=header.get("onward") is True,
        )


@dataclass(frozen=True, slots=True)
class Ping:
    kind: ClassVar[str] = "ping"
    session: SessionId
    nonce: int

    def pack(self) -> bytes:
        return encode({"kind": self.kind, "session": self.session, "nonce": self.nonce})

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        return cls(
            fields.session_of(frame.header), fields.whole(fields.get(frame.header, "nonce"), 0, 1 << 62, "a nonce")
        )


@dataclass(frozen=True, slots=True)
class Pong:
    """`rows`: how many tokens this hop has of each row. `queue`: tokens waiting on the whole peer."""

    kind: ClassVar[str] = "pong"
    session: SessionId
    nonce: int
    rows: Mapping[RowId, int]
    queue: int = 0

    def pack(self) -> bytes:
        rows = [[row, at] for row, at in self.rows.items()]
        return encode(
            {"kind": self.kind, "session": self.session, "nonce": self.nonce, "rows": rows, "queue": self.queue}
        )

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        return cls(
            fields.session_of(header),
            fields.whole(fields.get(header, "nonce"), 0, 1 << 62, "a nonce"),
            fields.positions(fields.get(header, "rows")),
            fields.whole(header.get("queue", 0), 0, 1 << 62, "a queue"),
        )


@dataclass(frozen=True, slots=True)
class Fault:
    """`peer`: whom it is about, where that is not the sender."""

    kind: ClassVar[str] = "fault"
    session: SessionId
    code: FaultCode
    message: str
    peer: PeerId | None = None

    def pack(self) -> bytes:
        text = self.message[:MAX_TEXT]
        return encode(
            {"kind": self.kind, "session": self.session, "code": str(self.code), "message": text, "peer": self.peer}
        )

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        try:
            code = FaultCode(fields.get(header, "code"))
        except ValueError:
            raise WireError(f"unknown fault code {str(header['code'])[:40]!r}") from None
        return cls(
            fields.session_of(header),
            code,
            fields.text(fields.get(header, "message"), "a message"),
            fields.peer_or_none(header.get("peer")),
        )


@dataclass(frozen=True, slots=True)
class Busy:
    kind: ClassVar[str] = "busy"
    session: SessionId
    retry_after: float  # seconds
    message: str

    def pack(self) -> bytes:
        text = self.message[:MAX_TEXT]
        return encode({"kind": self.kind, "session": self.session, "retry_after": self.retry_after, "message": text})

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        header = frame.header
        wait = fields.get(header, "retry_after")
        if not isinstance(wait, int | float) or not 0 <= wait <= 3600:
            raise WireError("retry_after is a number of seconds up to an hour")
        return cls(fields.session_of(header), float(wait), fields.text(fields.get(header, "message"), "a message"))


@dataclass(frozen=True, slots=True)
class Close:
    kind: ClassVar[str] = "close"
    session: SessionId

    def pack(self) -> bytes:
        return encode({"kind": self.kind, "session": self.session})

    @classmethod
    def parse(cls, frame: Frame) -> Self:
        return cls(fields.session_of(frame.header))


Message = Open | Ready | Step | Out | Relink | Fork | Ping | Pong | Fault | Busy | Close | TrainingMessage

_PARSERS: Mapping[str, Callable[[Frame], Message]] = {
    cls.kind: cls.parse for cls in (Open, Ready, Step, Out, Relink, Fork, Ping, Pong, Fault, Busy, Close, *TRAINING)
}


def parse(data: bytes | bytearray | memoryview) -> Message:
    """The message in the bytes of one frame. Raises WireError on anything the protocol does not allow."""
    frame = decode(data)
    kind = frame.header.get("kind")
    parser = _PARSERS.get(kind) if isinstance(kind, str) else None
    if parser is None:
        raise WireError(f"unknown kind of frame {str(kind)[:40]!r}")
    return parser(frame)
