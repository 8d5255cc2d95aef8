"""Results of a gateway's trial as figures."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table

from clients.bench.answers import Answer, decode_rate
from clients.bench.streams import Stream, stream_rate
from clients.bench.trial import GatewayTrial
from swarm.figures import Spread, new_table

if TYPE_CHECKING:
    from clients.bench.gateway import GatewayTurn

__all__ = ["GatewayReport", "Waits"]

EARLY = 1  # the second turn of a chat, which is the first that goes on from another


@dataclass(frozen=True, slots=True)
class Waits:
    """Seconds that users wait, of all answers of a round, over rounds."""

    first: Spread
    first_p95: Spread
    between: Spread
    between_p95: Spread

    @classmethod
    def of(cls, rounds: Sequence[Sequence[Answer | Stream]]) -> "Waits":
        firsts = [[answer.first for answer in answers] for answers in rounds]
        gaps = [[gap for answer in answers for gap in _gaps(answer)] for answers in rounds]
        return cls(
            Spread.of([statistics.median(values) for values in firsts]),
            Spread.of([_p95(values) for values in firsts]),
            Spread.of([statistics.median(values) for values in gaps]),
            Spread.of([_p95(values) for values in gaps]),
        )


@dataclass(frozen=True, slots=True)
class GatewayReport:
    """Rates are tokens per second of all together; `ratio` is the gateway's over the Python client's in the same
    round. `most`: what this machine could do at best. `chat`: seconds to the first token, turn by turn; `late`: the
    last turn's over the second's. `same`: rounds in which the text that was looked at is the Python client's."""

    sessions: Spread
    streams: Spread
    ratio: Spread
    most: float
    sessions_waits: Waits
    streams_waits: Waits
    chat: list[Spread]
    late: Spread
    same: int
    rounds: int

    @classmethod
    def of(cls, turns: Sequence["GatewayTurn"], most: float) -> "GatewayReport":
        return cls(
            sessions=Spread.of([decode_rate(turn.sessions) for turn in turns]),
            streams=Spread.of([stream_rate(turn.streams) for turn in turns]),
            ratio=Spread.of([stream_rate(turn.streams) / decode_rate(turn.sessions) for turn in turns]),
            most=most,
            sessions_waits=Waits.of([turn.sessions for turn in turns]),
            streams_waits=Waits.of([turn.streams for turn in turns]),
            chat=[Spread.of(times) for times in zip(*(turn.chat for turn in turns), strict=True)],
            late=Spread.of([turn.chat[-1] / turn.chat[EARLY] for turn in turns]),
            same=sum(turn.same for turn in turns),
            rounds=len(turns),
        )

    def tables(self, trial: GatewayTrial) -> Iterator[Table]:
        title = f"{trial.streams} answers at once over {trial.peers} peers: medians (lowest to highest)"
        columns = ("tokens/s", "over the client", "first token, s", "p95", "between tokens, ms", "p95")
        table = new_table(title, "", *columns)
        table.add_row("Python client", str(self.sessions), "1", *_waits(self.sessions_waits))
        table.add_row("gateway", str(self.streams), str(self.ratio), *_waits(self.streams_waits))
        table.add_row("at most", f"{self.most:.1f}")
        yield table
        chat = new_table("a chat through the gateway", "turn", "first token, s")
        for number, seconds in enumerate(self.chat, start=1):
            chat.add_row(str(number), str(seconds))
        chat.add_row(f"turn {len(self.chat)} over turn 2", str(self.late))
        yield chat

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def _gaps(answer: Answer | Stream) -> list[float]:
    return [later - sooner for sooner, later in zip(answer.at, answer.at[1:], strict=False)]


def _p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]


def _waits(waits: Waits) -> tuple[str, ...]:
    between = (waits.between, waits.between_p95)
    return (str(waits.first), str(waits.first_p95), *(str(_milliseconds(one)) for one in between))


def _milliseconds(seconds: Spread) -> Spread:
    return Spread(*(1000 * value for value in (seconds.median, seconds.low, seconds.high)))
