"""What was taken back stays so: with whom it is told, across restarts, and never by who had no right to."""

import time
from pathlib import Path

import msgpack
import pytest

from swarm.errors import UsageError
from swarm.identity import Identity
from swarm.invites import Role
from swarm.revocations import MAX_REVOCATIONS, Revocation, Revocations
from tests.swarm.members import HOUR, invited, owner

OWNER = owner()
GUEST = invited(OWNER).key.peer_id
LATER = time.time() + HOUR


def test_owner_and_admins_take_invites_back_and_others_learn_of_it() -> None:
    for who in (OWNER, invited(OWNER, Role.ADMIN)):
        known = Revocations(OWNER.swarm)
        assert known.learn([Revocation.make(who, GUEST, LATER).sealed])
        assert GUEST in known
        others = Revocations(OWNER.swarm)
        assert others.learn(known.sealed)
        assert not others.learn(known.sealed), "no news"
        assert GUEST in others


def test_guests_take_nothing_back() -> None:
    with pytest.raises(UsageError, match="only an admin's"):
        Revocation.make(invited(OWNER, Role.SERVE), GUEST, LATER)


def test_what_is_not_signed_by_who_may_is_left_out() -> None:
    stranger = Revocation.make(owner(), GUEST, LATER).sealed
    holder, until, grants, signature = msgpack.unpackb(Revocation.make(OWNER, GUEST, LATER).sealed)
    longer = msgpack.packb([holder, until + 1, grants, signature])
    other = msgpack.packb([Identity.ephemeral().peer_id, until, grants, signature])
    known = Revocations(OWNER.swarm)
    assert not known.learn([stranger, longer, other, b"", b"x" * 5000, 7, msgpack.packb([1, 2, 3, 4]), None])
    assert known.sealed == ()


def test_admin_who_was_put_out_takes_nothing_back() -> None:
    admin = invited(OWNER, Role.ADMIN)
    known = Revocations(OWNER.swarm)
    assert known.learn([Revocation.make(OWNER, admin.key.peer_id, LATER).sealed])
    assert not known.learn([Revocation.make(admin, GUEST, LATER).sealed])
    assert GUEST not in known


def test_it_is_remembered_and_forgotten_when_the_invite_would_have_ended(tmp_path: Path) -> None:
    path, now = tmp_path / "revoked", [time.time()]
    known = Revocations(OWNER.swarm, path, clock=lambda: now[0])
    assert known.learn([Revocation.make(OWNER, GUEST, LATER).sealed])
    assert path.stat().st_mode & 0o077 == 0
    assert GUEST in Revocations(OWNER.swarm, path)
    now[0] = LATER + 1
    assert GUEST not in Revocations(OWNER.swarm, path, clock=lambda: now[0])
    path.write_bytes(b"damaged")
    assert GUEST not in Revocations(OWNER.swarm, path)


def test_there_is_room_for_so_many() -> None:
    holders = [Identity.ephemeral().peer_id for _ in range(MAX_REVOCATIONS + 5)]
    known = Revocations(OWNER.swarm)
    known.learn([Revocation.make(OWNER, holder, LATER + place).sealed for place, holder in enumerate(holders)])
    assert len(known.sealed) == MAX_REVOCATIONS
    assert holders[-1] in known, "those that would soon end by themselves make room"
    assert holders[0] not in known
