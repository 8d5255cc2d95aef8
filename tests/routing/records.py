"""Records and views made up for the tests of routing."""

from collections.abc import Iterable

from hypothesis import strategies as st

from routing.perf import Costs, Link, Links
from routing.view import View
from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState

MODEL = Digest("ab" * 32)
CLIENT = PeerId("client")
NOW = 1000.0
EXACT = Costs(spread=1e-9)


def record(
    name: str,
    start: int,
    end: int,
    *,
    num_blocks: int,
    throughput: float = 10.0,
    prefill: float = 100.0,
    state: PeerState = PeerState.ONLINE,
    queue: int = 0,
    cache_left: int = 1000,
    model: Digest = MODEL,
    issued: float = NOW - 10,
    expires: float = NOW + 60,
    precision: str = "fp32",
) -> PeerRecord:
    return PeerRecord(
        contact=Contact(PeerId(name)),
        model=model,
        model_name="tiny",
        num_blocks=num_blocks,
        span=Span(start, end),
        state=state,
        throughput=throughput,
        prefill=prefill,
        cache_left=cache_left,
        precision=precision,
        version="1",
        public_name="",
        reason="",
        queue=queue,
        issued=issued,
        expires=expires,
    )


def view(num_blocks: int, records: Iterable[PeerRecord]) -> View:
    return View.of(records, model=MODEL, num_blocks=num_blocks, now=NOW)


@st.composite
def views(draw: st.DrawFn, max_blocks: int = 6, max_peers: int = 5) -> View:
    num_blocks = draw(st.integers(1, max_blocks))
    records = []
    for i in range(draw(st.integers(0, max_peers))):
        start = draw(st.integers(0, num_blocks - 1))
        end = draw(st.integers(start + 1, num_blocks))
        records.append(
            record(
                f"peer{i}",
                start,
                end,
                num_blocks=num_blocks,
                throughput=draw(st.sampled_from([1.0, 5.0, 20.0, 100.0])),
                prefill=draw(st.sampled_from([10.0, 1000.0])),
                queue=draw(st.sampled_from([0, 0, 3, 2000])),
                state=draw(st.sampled_from([PeerState.ONLINE] * 6 + list(PeerState))),
            )
        )
    return view(num_blocks, records)


@st.composite
def whole_views(draw: st.DrawFn) -> View:
    """Views in which somebody holds every block."""
    seen, rates = draw(views()), st.sampled_from([1.0, 20.0])
    missing = seen.missing(Span(0, seen.num_blocks))
    others = [record(f"other{b}", b, b + 1, num_blocks=seen.num_blocks, throughput=draw(rates)) for b in missing]
    return view(seen.num_blocks, [*seen.peers, *others])


LINK = st.builds(Link, st.sampled_from([0.0, 0.001, 0.02, 0.3]), st.sampled_from([1e4, 1e6, 1e9]))


@st.composite
def links(draw: st.DrawFn) -> Links:
    """Some pairs known; often every way from the client, from which the others are then estimated."""
    peers = [PeerId(f"peer{i}") for i in range(5)]
    names = st.sampled_from([CLIENT, *peers])
    known = draw(st.dictionaries(st.tuples(names, names), LINK, max_size=6))
    if draw(st.booleans()):
        known |= {(CLIENT, peer): draw(LINK) for peer in peers}
    return Links(draw(LINK), known, draw(st.sampled_from([None, CLIENT])))
