"""What a member believes of where others stand, and what it takes for a lie."""

import pytest

from clients.federated.frames import Signed, sealed
from clients.federated.terms import Terms
from clients.federated.votes import Stand, Votes
from swarm.errors import WireError
from swarm.identity import Identity

TERMS = Terms(name="run", size=8, rounds=10, min_members=3)
FIRST: Stand = (0, b"0" * 32)
HERE: Stand = (4, b"h" * 32)
THERE: Stand = (6, b"t" * 32)
MEMBERS = [Identity.ephemeral() for _ in range(5)]


def stood(identity: Identity, stand: Stand, terms: Terms = TERMS, kind: str = "stand") -> Signed:
    return sealed(identity, terms.key, kind=kind, round=stand[0], state=stand[1])


def in_the_name_of(identity: Identity, signed: Signed) -> Signed:
    return Signed(identity.peer_id, signed.payload, signed.signature)


def winner(mine: Stand, *stands: Stand, signed: int = 0) -> Stand:
    """What is taken by one that hears these; those who are not at the beginning show so many signatures of others."""
    votes = Votes(TERMS)
    votes.adopt(MEMBERS[-1], mine)
    for member, stand in zip(MEMBERS, stands, strict=False):
        shown = [stood(Identity.ephemeral(), stand) for _ in range(signed if stand[0] else 0)]
        votes.heard(member.peer_id, stand, shown, mine)
    return votes.winner(mine, votes.stands.keys())


def test_who_begins_believes_no_fewer_than_begin_with_it() -> None:
    assert winner(FIRST, HERE) == HERE
    assert winner(FIRST, HERE, FIRST) == FIRST
    assert winner(FIRST, HERE, HERE, FIRST) == HERE
    assert winner(FIRST, HERE, FIRST, FIRST) == FIRST


def test_who_begins_believes_one_that_shows_what_enough_have_signed() -> None:
    assert winner(FIRST, HERE, FIRST, FIRST, signed=3) == HERE
    assert winner(FIRST, HERE, FIRST, FIRST, signed=2) == FIRST


def test_who_has_begun_goes_with_most_and_not_back() -> None:
    assert winner(HERE, THERE, THERE) == THERE
    assert winner(HERE, THERE, HERE) == HERE
    assert winner(HERE, FIRST, FIRST, FIRST) == HERE


@pytest.mark.parametrize(
    "wrong",
    [
        stood(MEMBERS[1], THERE),
        stood(MEMBERS[1], HERE, kind="status"),
        stood(MEMBERS[1], HERE, Terms(name="another", size=8)),
        stood(MEMBERS[1], (99, HERE[1])),
        in_the_name_of(MEMBERS[2], stood(MEMBERS[1], HERE)),
    ],
    ids=["elsewhere", "something else", "another run", "beyond the end", "in the name of another"],
)
def test_signatures_of_anything_else_end_the_stream(wrong: Signed) -> None:
    with pytest.raises(WireError):
        Votes(TERMS).heard(MEMBERS[0].peer_id, HERE, [wrong], FIRST)


def test_what_others_signed_is_passed_on_and_outlives_a_stop_until_the_run_goes_on() -> None:
    votes = Votes(TERMS)
    votes.adopt(MEMBERS[0], HERE)
    for member in MEMBERS[1:]:
        votes.heard(member.peer_id, HERE, [stood(member, HERE)], HERE)
    shown = votes.signed(HERE)
    assert len(shown) == TERMS.min_members
    assert Votes(TERMS, shown).signed(HERE) == shown
    votes.retain(set())
    votes.adopt(MEMBERS[0], THERE)
    assert votes.signed(HERE) == []
    assert [signed.by for signed in votes.signed(THERE)] == [MEMBERS[0].peer_id]
