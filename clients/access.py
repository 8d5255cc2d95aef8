"""`swarm invite` and `swarm revoke`: who may enter a private swarm."""

import asyncio
import os
import re
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from swarm.door import knock, way_in
from swarm.entrance import INVITE, is_loopback, parse_peers
from swarm.errors import NetworkError, SwarmError, UsageError
from swarm.event_loop import new_event_loop
from swarm.ids import PeerId
from swarm.invites import Invite, Role, short_id
from swarm.own_swarm import Invited, OwnSwarm
from swarm.revocations import Revocation
from swarm.settings import data_folder
from swarm.terminal import LogFormat, setup_logging

__all__ = ["invite", "revoke"]

UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 7 * 86400.0}  # seconds
REVOKED_FOR = 366 * 86400.0  # seconds, where nobody knows when the invite would end by itself

As = Annotated[
    str | None,
    typer.Option("--as", metavar="INVITE", help="Your invite as an admin, or @FILE; by default you own the swarm."),
]


def invite(
    role: Annotated[
        str, typer.Option(metavar="ROLE", help="use, serve (and use) or admin (all of it, and invite).")
    ] = "use",
    expires: Annotated[str, typer.Option(metavar="TIME", help="How long it is good for, such as 12h or 7d.")] = "7d",
    admin: As = None,
    address: Annotated[
        list[str] | None, typer.Option(metavar="ADDRESS", help="Where the swarm is found, instead of what is known.")
    ] = None,
    listing: Annotated[bool, typer.Option("--list", help="Show whom you have invited, and make none.")] = False,
) -> None:
    """Make an invite to your private swarm: one line, on stdout. It is a secret: whoever has it is invited."""
    setup_logging(LogFormat.PRETTY)
    own = OwnSwarm(data_folder(os.environ, Path.home()))
    if listing:
        typer.echo(_listing(own.invited(), time.time()))
        return
    right, ends = Role.named(role), time.time() + _seconds(expires)
    mine = own.owner() if admin is None else _admin(admin)
    made = replace(mine, addresses=parse_peers(address) if address else mine.addresses).invite(right, ends)
    if not made.addresses:
        raise UsageError("where is the swarm? Start a peer with swarm-serve MODEL --private first, or give --address")
    own.note(made, right)
    if all(is_loopback(place) for place in made.addresses):
        typer.echo("This invite is good on this machine alone: the peer listens on loopback.", err=True)
    typer.echo(f"To {right} until {_date(made.right.expires)}; take it back with: swarm revoke {_id(made)}", err=True)
    typer.echo(made.text())


def revoke(
    invited: Annotated[str, typer.Argument(metavar="ID", help="As swarm invite said it: the end of the invite's key.")],
    admin: As = None,
) -> None:
    """Take an invite back: whoever came by it is put out, and so is everyone whom they invited."""
    setup_logging(LogFormat.PRETTY)
    own = OwnSwarm(data_folder(os.environ, Path.home()))
    mine = own.owner() if admin is None else _admin(admin)
    entry = _entry(mine, own.invited(), invited)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        told = runner.run(_tell(mine, entry))
    if not told:
        raise NetworkError("no peer of the swarm could be told: try again while one of them runs")
    typer.echo(f"Taken back: {short_id(entry.holder)}. {told} peers know of it, and they tell the others.")


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    if found is None or int(found[1]) == 0:
        raise UsageError(f"--expires is a number and m, h, d or w, such as 12h or 7d, not '{text}'")
    return int(found[1]) * UNITS[found[2]]


def _admin(text: str) -> Invite:
    _, found = way_in([text])
    if found is None:
        raise UsageError(f"--as takes an invite: a line that begins with {INVITE}, or @ and a file that holds it")
    return found


def _entry(mine: Invite, invited: Sequence[Invited], wanted: str) -> Revocation:
    found = [known for known in invited if known.holder.endswith(wanted)] if wanted else []
    if len(found) == 1:
        return Revocation.make(mine, found[0].holder, found[0].expires)
    if len(found) > 1:
        raise UsageError(f"{len(found)} invites end in '{wanted}': give more of it")
    if len(wanted) < len(mine.swarm):
        raise UsageError(
            f"no invite that was made here ends in '{wanted}': see swarm invite --list, or give its whole key"
        )
    return Revocation.make(mine, PeerId(wanted), time.time() + REVOKED_FOR)


async def _tell(mine: Invite, entry: Revocation) -> int:
    """How many peers have heard."""
    from clients.connection import join  # brings torch and hivemind, which help does not need

    async with AsyncExitStack() as stack:
        host, directory = await join(stack, [mine.text()])
        assert host.door is not None
        host.door.revocations.learn([entry.sealed])
        heard = 0
        for record in await directory.read():
            try:
                await knock(host.open_transport, record.peer, record.contact.addresses, host.door)
                heard += 1
            except SwarmError as error:
                typer.echo(f"Peer {record.peer} could not be told: {error}", err=True)
        return heard


def _listing(invited: Sequence[Invited], now: float) -> str:
    lines = [
        f"{short_id(known.holder)}  {known.role:<5}  "
        + ("ended" if known.expires <= now else f"until {_date(known.expires)}")
        for known in invited
    ]
    return "\n".join(lines) or "nobody yet"


def _id(made: Invite) -> str:
    return short_id(made.key.peer_id)


def _date(moment: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))
