"""`swarm invite` and `swarm revoke` as an owner types them; what they do to a running swarm is in tests/swarm."""

import re
from pathlib import Path

import pytest

from swarm.cli import COMMANDS, run
from swarm.invites import Invite, Role
from swarm.own_swarm import OwnSwarm
from tests.swarm.members import invited, owner

ADDRESS = "/ip4/203.0.113.7/tcp/31330/p2p/12D3KooWCv7Xq2EotEmitv7Lsahp3BEqAai1vR5HLzQPrAkLRwE9"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "swarm"


def call(*words: str) -> int:
    return run(list(words), COMMANDS)


def test_owner_makes_an_invite_and_sees_it_listed(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = OwnSwarm(data)
    own.found()
    own.remember([ADDRESS])
    assert call("invite", "--role", "serve", "--expires", "12h") == 0
    said = capsys.readouterr()
    made = Invite.read(said.out)
    assert (made.right.role, made.addresses) == (Role.SERVE, (ADDRESS,))
    assert made.text() not in said.err
    (name,) = re.findall(r"swarm revoke (\w+)", said.err)
    assert call("invite", "--list") == 0
    assert name in capsys.readouterr().out


def test_files_of_an_owner_are_theirs_alone(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OwnSwarm(data).found()
    assert call("invite", "--address", ADDRESS) == 0
    files = list((data / "private").iterdir())
    assert len(files) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in files)


def test_admin_invites_others_and_a_guest_does_not(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("invite", "--as", invited(owner(), Role.ADMIN).text(), "--address", ADDRESS) == 0
    assert Invite.read(capsys.readouterr().out).right.role is Role.USE
    assert call("invite", "--as", invited(owner(), Role.SERVE).text(), "--address", ADDRESS) == 2
    assert "only an admin's can make others" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["invite"], "owns no private swarm"),
        (["invite", "--role", "king"], "a role is one of use, serve, admin"),
        (["invite", "--expires", "soon"], "such as 12h or 7d"),
        (["invite", "--as", ADDRESS], "--as takes an invite"),
        (["invite", "--as", "swarm-invite.AAAA"], "damaged"),
        (["revoke", "abc"], "owns no private swarm"),
        (["status", "--initial-peers", "@/nowhere"], "can't be read"),
    ],
)
def test_what_cannot_be_done_is_said(
    data: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    assert call(*words) == 2
    assert says in capsys.readouterr().err


def test_revoking_needs_an_invite_that_was_made_and_a_swarm_with_addresses(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = OwnSwarm(data)
    own.found()
    assert call("invite") == 2
    assert "where is the swarm?" in capsys.readouterr().err
    assert call("revoke", "abc") == 2
    assert "no invite that was made here ends in 'abc'" in capsys.readouterr().err


def test_invite_without_its_swarm_says_that_nobody_answers(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = OwnSwarm(data)
    own.found()
    own.remember([ADDRESS.replace("203.0.113.7", "127.0.0.1").replace("31330", "1")])
    assert call("invite") == 0
    line = capsys.readouterr().out.strip()
    assert call("status", "--initial-peers", line) == 1
    err = capsys.readouterr().err
    assert "none of the initial peers answered" in err
    assert line not in err, "an invite is a secret"
