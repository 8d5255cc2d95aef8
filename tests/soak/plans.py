"""What happens in a soak: everything is drawn from one seed, which the ids of the tests show.

SWARM_SOAK_SEED=123 makes a soak again as it was; SWARM_SOAK_RUNS=100 makes more runs of it, and SWARM_SOAK_MINUTES=5 a
shorter churn.
"""

import os
import random
from dataclasses import dataclass

__all__ = ["MINUTES", "SEED", "Case", "Run", "cases", "runs"]

SEED = int(os.environ.get("SWARM_SOAK_SEED") or random.randrange(1_000_000))
RUNS = int(os.environ.get("SWARM_SOAK_RUNS") or 36)
MINUTES = float(os.environ.get("SWARM_SOAK_MINUTES") or 30)

MODES = ("greedy", "sampling", "beams")
CONTEXT = 480  # tokens of prompt in a run, so that whoever is killed in mid-answer leaves about 500 to replay


@dataclass(frozen=True, slots=True)
class Case:
    """One answer: a prompt of `lengths` tokens for each row, `start` says which text."""

    mode: str
    lengths: tuple[int, ...]
    start: int
    seed: int

    def __str__(self) -> str:
        return f"{self.mode}-{'+'.join(map(str, self.lengths))}"


@dataclass(frozen=True, slots=True)
class Run:
    """One answer and what happens meanwhile.

    `how`: kill (SIGKILL to a whole peer), hang (SIGSTOP), executor, daemon or network (SIGKILL to that process alone).
    `hops`: the places in the chain that are hit, all at once. `token`: when this token has come, `delay` seconds later;
    None: `delay` seconds after the prompt was sent. `again`: hit those who replace them too, as soon as they are known.
    """

    number: int
    case: Case
    how: str
    hops: tuple[int, ...]
    token: int | None
    delay: float
    again: bool
    both: bool  # a second session runs beside it

    def __str__(self) -> str:
        when = "prefill" if self.token is None else f"token{self.token}"
        parts = [self.how, "+".join(map(str, self.hops)), when, "again" if self.again else "", str(self.case)]
        return f"seed{SEED}-run{self.number:02d}-" + "-".join(part for part in parts if part)


def cases() -> list[Case]:
    """Every way to generate with one row and with four, prompts of any length, both ends of the scale among them."""
    draw = random.Random(SEED)
    lengths = [(round(1000 ** draw.random()),) for _ in MODES]
    batches = [tuple(round(1000 ** draw.random()) for _ in range(4)) for _ in MODES]
    drawn = [(mode, rows) for rows_of in (lengths, batches) for mode, rows in zip(MODES, rows_of, strict=True)]
    ends = [("greedy", (1,)), ("sampling", (1000,))]
    return [Case(mode, rows, draw.randrange(2000), draw.randrange(1000)) for mode, rows in drawn + ends]


def runs() -> list[Run]:
    """Most are SIGKILLs of one hop in mid-answer; every other kind of failure comes several times."""
    draw = random.Random(SEED + 1)
    kinds = [
        *(_run(draw, hops=(hop,)) for hop in (0, 1, 2) for _ in range(4)),
        *(_run(draw, hops=(hop,), prefill=True) for hop in (0, 1, 2) for _ in range(2)),
        *(_run(draw, hops=hops) for hops in ((0, 1), (1, 2), (0, 2))),
        *(_run(draw, hops=hops, prefill=True) for hops in ((0, 1), (1, 2))),
        *(_run(draw, hops=(hop,), again=True) for hop in (0, 1, 2)),
        _run(draw, hops=(0, 2), again=True),
        *(_run(draw, hops=(hop,), how="hang") for hop in (0, 2)),
        _run(draw, hops=(1,), how="hang", prefill=True),
        *(_run(draw, hops=(draw.randrange(3),), how=how) for how in ("executor", "daemon", "network")),
        *(_run(draw, hops=(draw.randrange(3),), prefill=True, how=how) for how in ("executor", "daemon")),
        _run(draw, hops=(1,), both=True),
    ]
    drawn = [kinds[index % len(kinds)] for index in range(RUNS)]
    draw.shuffle(drawn)
    return [Run(number, *rest) for number, rest in enumerate(drawn)]


def _run(
    draw: random.Random,
    *,
    hops: tuple[int, ...],
    how: str = "kill",
    prefill: bool = False,
    again: bool = False,
    both: bool = False,
) -> tuple[Case, str, tuple[int, ...], int | None, float, bool, bool]:
    mode = "greedy" if both else draw.choice(("greedy", "greedy", "greedy", "sampling", "beams"))
    rows = (CONTEXT,) if draw.random() < 0.8 else (CONTEXT // 2, 60, 7, CONTEXT // 3)
    case = Case(mode, rows, draw.randrange(2000), draw.randrange(1000))
    delay = draw.uniform(0.0, 1.5) if prefill else draw.choice((0.0, draw.uniform(0.0, 0.06)))
    return case, how, hops, None if prefill else draw.randrange(8, 24), delay, again, both
