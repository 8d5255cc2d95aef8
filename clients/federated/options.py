"""What a member of a federated run says of it: options of `swarm finetune`. Imports nothing heavy, for its help."""

from dataclasses import dataclass
from typing import Annotated

import typer

__all__ = ["Place", "Together"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """What a run's members agree on beside the training itself; without `join` nobody trains together."""

    join: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Train together with all who give this name and the same options."),
    ] = None
    local_steps: Annotated[int, typer.Option(min=1, help="With --join: steps between two exchanges.")] = 10
    rule: Annotated[
        str, typer.Option(help="With --join: how changes are combined: mean, or median or trimmed against liars.")
    ] = "mean"
    server: Annotated[str, typer.Option(help="With --join: what steps by them: avg, avgm, adam, adamw.")] = "avg"
    server_rate: Annotated[float | None, typer.Option(help="With --join: its rate; by default one that suits it.")] = (
        None
    )
    clip: Annotated[float, typer.Option(help="With --join: the longest change of a member in a round.")] = 10.0
    noise: Annotated[
        float, typer.Option(help="With --join: noise on each change for differential privacy, in units of --clip.")
    ] = 0.0
    min_members: Annotated[int, typer.Option(min=1, help="With --join: who has to be there for a round.")] = 2
    wait: Annotated[float, typer.Option(help="With --join: seconds to wait for slower members.")] = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where this member listens, what it tells others of that, and whom it meets first."""

    host: Annotated[str, typer.Option(help="With --join: where to listen for other members.")] = "0.0.0.0"
    port: Annotated[int, typer.Option(help="With --join: the port; 0 for any.")] = 0
    announce: Annotated[
        list[str] | None, typer.Option(help="With --join: address at which members reach this machine.")
    ] = None
    meet: Annotated[
        list[str] | None, typer.Option(help="With --join: address of a member, as it shows it; none to begin a run.")
    ] = None
