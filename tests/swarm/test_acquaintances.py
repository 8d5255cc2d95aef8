"""Who was seen is remembered, within bounds, and tried when nobody is where the first peers were."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from swarm.acquaintances import MOST_FILES, MOST_KEPT, MOST_KNOWN, STALE_SECONDS, Acquaintances, file_of, ways_in
from swarm.identity import Identity
from swarm.ids import PeerId
from swarm.messages import Contact

pytestmark = pytest.mark.anyio

ADA, BOB = Identity.ephemeral().peer_id, Identity.ephemeral().peer_id


def at(peer: PeerId, port: int = 31330) -> str:
    return f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer}"


class Clock:
    now = 1_000_000_000.0

    def __call__(self) -> float:
        return self.now


def test_what_one_process_saw_the_next_one_knows(tmp_path: Path) -> None:
    known = Acquaintances((at(ADA),), tmp_path / "seen")
    known.saw(Contact(BOB, (at(BOB),)))
    known.save()
    again = Acquaintances((at(ADA),), tmp_path / "seen")
    assert again.contacts() == (Contact(BOB, (at(BOB),)), Contact(ADA, (at(ADA),)))


def test_who_was_not_seen_for_long_is_dropped(tmp_path: Path) -> None:
    clock = Clock()
    known = Acquaintances((), tmp_path / "seen", clock=clock)
    known.saw(Contact(BOB, (at(BOB),)))
    known.save()
    clock.now += STALE_SECONDS
    assert Acquaintances((), tmp_path / "seen", clock=clock).contacts() == ()


def test_memory_and_file_are_bounded_and_hold_the_latest(tmp_path: Path) -> None:
    known = Acquaintances((), tmp_path / "seen")
    peers = [PeerId(f"12D3KooW{'1' * 36}{number:04d}".replace("0", "z")) for number in range(MOST_KNOWN + 50)]
    for peer in peers:
        known.saw(Contact(peer, tuple(at(peer, port) for port in range(1, 100))))
    assert len(known.contacts()) == MOST_KNOWN
    known.save()
    kept = Acquaintances((), tmp_path / "seen").contacts()
    assert [contact.peer for contact in kept] == peers[: -MOST_KEPT - 1 : -1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff{",
        b"[1, 2]",
        b"{}",
        json.dumps([[ADA, "yesterday", [at(ADA)]]]).encode(),
        json.dumps([[ADA, 2e9, ["not an address"]]]).encode(),
        json.dumps([[ADA, 2e9, [at(BOB)]]]).encode(),
        b"[" * 100_000,
    ],
    ids=["empty", "no text", "no entries", "no list", "no time", "no address", "another's address", "too deep"],
)
def test_a_file_that_makes_no_sense_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seen").write_bytes(content)
    assert Acquaintances((at(ADA),), tmp_path / "seen").contacts() == (Contact(ADA, (at(ADA),)),)


def test_a_folder_keeps_the_files_of_the_latest_swarms(tmp_path: Path) -> None:
    for number in range(MOST_FILES + 5):
        file = file_of(tmp_path, (f"/p2p/{number}",))
        Acquaintances((), file).save()
        os.utime(file, (number, number))
    Acquaintances((), file).save()
    assert len(list((tmp_path / "seen").iterdir())) == MOST_FILES
    assert file.exists()


def test_addresses_of_others_in_a_record_are_not_taken() -> None:
    known = Acquaintances()
    known.saw(Contact(BOB, (at(ADA), "/ip4/127.0.0.1/tcp/1/p2p/" + "x" * 400)))
    assert known.contacts() == ()


def test_two_swarms_have_two_files_and_the_order_of_addresses_does_not_matter(tmp_path: Path) -> None:
    assert file_of(tmp_path, (at(ADA), at(BOB))) == file_of(tmp_path, (at(BOB, 7), at(ADA, 7)))
    assert file_of(tmp_path, (at(ADA),)) != file_of(tmp_path, (at(BOB),))


async def test_peers_seen_before_are_tried_where_nobody_is_at_the_given_addresses(tmp_path: Path) -> None:
    async def listen(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    async with server:
        alive, dead = at(BOB, server.sockets[0].getsockname()[1]), at(ADA, 1)
        known = Acquaintances((dead,), tmp_path / "seen")
        known.saw(Contact(BOB, (alive,)))
        known.save()
        assert await ways_in((dead,), tmp_path / "seen") == (dead, alive)
        assert await ways_in((alive,), tmp_path / "seen") == (alive,)
        assert await ways_in((dead,), tmp_path / "nothing") == (dead,)
