"""Identity files: made privately, used again, refused when they can't be trusted."""

import stat
from pathlib import Path

import pytest

from swarm.errors import IdentityError
from swarm.identity import Identity, verify
from swarm.ids import PeerId


def test_new_file_is_private_and_used_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "identity"
    first = Identity.load_or_create(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert Identity.load_or_create(path).peer_id == first.peer_id
    assert [entry.name for entry in path.parent.iterdir()] == ["identity"]


def test_peer_id_is_libp2ps_ed25519_form() -> None:
    ids = {Identity.ephemeral().peer_id for _ in range(5)}
    assert len(ids) == 5
    assert all(peer.startswith("12D3KooW") and len(peer) == 52 for peer in ids)


def test_signature_is_checked_from_the_peer_id_alone() -> None:
    one, other = Identity.ephemeral(), Identity.ephemeral()
    signature = one.sign(b"data")
    assert verify(one.peer_id, b"data", signature)
    assert not verify(one.peer_id, b"date", signature)
    assert not verify(other.peer_id, b"data", signature)
    assert not verify(one.peer_id, b"data", signature[:-1])


@pytest.mark.parametrize(
    "peer", ["", "0OIl", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "1" * 52, "ü" * 52, "1" * 9999]
)
def test_no_signature_is_good_for_what_is_no_ed25519_peer_id(peer: str) -> None:
    assert not verify(PeerId(peer), b"data", bytes(64))


def test_ephemeral_key_is_a_file_only_while_it_is_read() -> None:
    identity = Identity.ephemeral()
    with identity.file() as path:
        assert Identity.load_or_create(path).peer_id == identity.peer_id
    assert not path.exists()


def test_kept_key_stays_after_it_was_read(tmp_path: Path) -> None:
    with Identity.load_or_create(tmp_path / "identity").file() as path:
        assert path == tmp_path / "identity"
    assert path.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no Ed25519 identity"),
        (b"garbage", "holds no Ed25519 identity"),
        (b"\x08\x00\x12\xa7\x12" + bytes(2343), "RSA"),
        (b"\x08\x01\x12\x40" + bytes(63), "holds no Ed25519 identity"),
        (b"\x08\x01\x12\x40" + bytes(64), "damaged"),
    ],
)
def test_file_that_holds_something_else_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(IdentityError, match=said):
        Identity.load_or_create(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o606, 0o620])
def test_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity"
    Identity.load_or_create(path)
    path.chmod(mode)
    with pytest.raises(IdentityError, match="chmod 600"):
        Identity.load_or_create(path)


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="can't be read"):
        Identity.load_or_create(tmp_path)


def test_place_where_nothing_can_be_made_is_refused() -> None:
    with pytest.raises(IdentityError, match="--identity-path"):  # a folder that refuses root too
        Identity.load_or_create(Path("/proc/self/identity"))


def test_key_is_not_in_the_repr(tmp_path: Path) -> None:
    path = tmp_path / "identity"
    identity = Identity.load_or_create(path)
    assert repr(identity) == f"Identity({identity.peer_id})"
