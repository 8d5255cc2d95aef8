import subprocess
import sys
from pathlib import Path

import pytest

from peers.identity_lock import hold_identity
from swarm.errors import IdentityError

HOLDER = """
import sys
from pathlib import Path
from peers.identity_lock import hold_identity
with hold_identity(Path(sys.argv[1]), Path()) as (identity, _):
    print(identity.peer_id, flush=True)
    sys.stdin.read()
"""


def test_second_peer_on_a_machine_gets_an_identity_of_its_own(tmp_path: Path) -> None:
    with hold_identity(None, tmp_path) as (first, _), hold_identity(None, tmp_path) as (second, where):
        assert first.peer_id != second.peer_id
        assert where == tmp_path / "identity-2"


def test_identities_are_found_again(tmp_path: Path) -> None:
    with hold_identity(None, tmp_path) as (first, _):
        pass
    with hold_identity(None, tmp_path) as (again, _):
        assert again.peer_id == first.peer_id


def test_named_identity_in_use_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    with (
        hold_identity(path, tmp_path),
        pytest.raises(IdentityError, match=r"another process .* --identity-path"),
        hold_identity(path, tmp_path),
    ):
        pass


def test_identity_of_a_killed_process_is_free(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        peer_id = holder.stdout.readline().strip()
        with pytest.raises(IdentityError), hold_identity(path, tmp_path):
            pass
        holder.kill()
        holder.wait(30)
        with hold_identity(path, tmp_path) as (identity, _):
            assert identity.peer_id == peer_id
