"""Invites and passes: what they allow, and that nobody can make one without the right to it."""

import base64
import time
from dataclasses import replace

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import AccessError, UsageError
from swarm.identity import Identity
from swarm.invites import INVITE, MAX_PASS, Invite, Role, read_pass
from tests.swarm.members import HOUR, invited, owner

OWNER = owner()
PEER = Identity.ephemeral().peer_id
ADDRESS = f"/ip4/203.0.113.7/tcp/31330/p2p/{PEER}"


def test_invite_is_one_line_that_reads_as_it_was_written() -> None:
    made = replace(invited(OWNER, Role.SERVE), addresses=(ADDRESS,))
    assert "\n" not in made.text()
    again = Invite.read(f"  {made.text()}\n")
    assert (again.swarm, again.grants, again.addresses) == (OWNER.swarm, made.grants, (ADDRESS,))
    assert again.key.peer_id == made.key.peer_id


def test_nothing_that_is_printed_of_an_invite_is_secret() -> None:
    made = invited(OWNER)
    assert made.key.secret.hex() not in repr(made)
    assert made.text() not in repr(made)


@pytest.mark.parametrize("role", list(Role))
def test_pass_says_what_its_holder_may_do(role: Role) -> None:
    made = invited(OWNER, role)
    shown = made.show(PEER)
    assert len(shown) <= MAX_PASS
    found = read_pass(shown, OWNER.swarm, PEER)
    assert found.role is role
    assert found.expires == pytest.approx(time.time() + HOUR, abs=60)


def test_pass_of_somebody_else_is_worth_nothing() -> None:
    shown = invited(OWNER).show(PEER)
    with pytest.raises(AccessError, match="not made for peer"):
        read_pass(shown, OWNER.swarm, Identity.ephemeral().peer_id)


def test_pass_of_another_swarm_is_worth_nothing() -> None:
    with pytest.raises(AccessError):
        read_pass(invited(owner()).show(PEER), OWNER.swarm, PEER)


def test_who_founds_a_swarm_of_the_same_name_is_not_its_owner() -> None:
    forged = replace(owner(), swarm=OWNER.swarm)
    for invite in (forged, replace(invited(owner()), swarm=OWNER.swarm)):
        with pytest.raises(AccessError):
            read_pass(invite.show(PEER), OWNER.swarm, PEER)


def test_admins_invite_others_and_nobody_else_does() -> None:
    admin = invited(OWNER, Role.ADMIN)
    guest = invited(admin, Role.SERVE)
    assert read_pass(guest.show(PEER), OWNER.swarm, PEER).role is Role.SERVE
    with pytest.raises(UsageError, match="only an admin's"):
        invited(guest)


def test_guest_cannot_sign_for_what_only_admins_may() -> None:
    guest = invited(OWNER, Role.USE)
    forged = replace(guest, grants=())  # as if it were an owner
    friend = forged.invite(Role.ADMIN, time.time() + HOUR)
    with pytest.raises(AccessError, match="nor by an admin"):
        read_pass(replace(friend, grants=guest.grants + friend.grants).show(PEER), OWNER.swarm, PEER)


def test_guest_cannot_raise_its_own_role_or_time() -> None:
    guest = invited(OWNER, Role.USE)
    (grant,) = guest.grants
    for better in (replace(grant, role=Role.ADMIN), replace(grant, expires=grant.expires + 1)):
        with pytest.raises(AccessError):
            read_pass(replace(guest, grants=(better,)).show(PEER), OWNER.swarm, PEER)


def test_invite_lasts_no_longer_than_that_of_who_made_it() -> None:
    admin = invited(OWNER, Role.ADMIN, lasting=HOUR)
    guest = invited(admin, lasting=100 * HOUR)
    assert guest.right.expires == admin.right.expires
    with pytest.raises(UsageError, match="has ended"):
        invited(invited(OWNER, Role.ADMIN, lasting=-1.0))


def test_longest_pass_fits() -> None:
    last = OWNER
    for _ in range(3):
        last = invited(last, Role.ADMIN)
    assert read_pass(last.show(PEER), OWNER.swarm, PEER).role is Role.ADMIN
    with pytest.raises(UsageError, match="admin's admin"):
        invited(last)


@given(st.data())
def test_damaged_invites_are_refused_in_a_sentence(data: st.DataObject) -> None:
    text = invited(OWNER).text()
    at = data.draw(st.integers(0, len(text) - 1))
    letter = data.draw(st.sampled_from("AZaz09-_!.").filter(lambda new: new != text[at]))
    if at == len(text) - 1:  # base64 has bits to spare there
        return
    with pytest.raises(UsageError, match="damaged"):
        Invite.read(text[:at] + letter + text[at + 1 :])


PLAIN = st.none() | st.integers(-(2**63), 2**64 - 1) | st.binary() | st.text()


@given(st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=5)))
def test_whatever_is_shown_is_read_or_refused(value: object) -> None:
    with pytest.raises(AccessError):
        read_pass(msgpack.packb(value), OWNER.swarm, PEER)
    line = INVITE + base64.urlsafe_b64encode(msgpack.packb(value)).decode()
    with pytest.raises(UsageError):
        Invite.read(line)


@given(st.binary(max_size=2 * MAX_PASS))
def test_any_bytes_are_refused(shown: bytes) -> None:
    with pytest.raises(AccessError):
        read_pass(shown, OWNER.swarm, PEER)
