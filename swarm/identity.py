"""Who a peer is: an Ed25519 key in a file that only its owner can read.

The file is libp2p's private-key protobuf, which the libp2p daemon reads as it stands. A peer id holds the whole public
key (an identity multihash, libp2p specs: peer-ids.md), so a signature can be checked from the peer id alone.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from swarm.errors import IdentityError
from swarm.ids import PeerId

__all__ = ["Identity", "verify"]

# The protobuf fields `key_type = Ed25519` and `data = <n bytes>`; both messages are fixed bytes before the key itself.
_PRIVATE = bytes((0x08, 1, 0x12, 64))  # then seed and public key
_RSA = bytes((0x08, 0))
_PUBLIC = bytes((0x08, 1, 0x12, 32))  # then the public key
_PEER = bytes((0x00, len(_PUBLIC) + 32)) + _PUBLIC  # identity multihash of the public key's protobuf
_SEED = 32
_MAX_PEER_ID = 64  # characters; an Ed25519 peer id has 52


class Identity:
    """An Ed25519 key pair and the peer id that follows from it."""

    def __init__(self, key: Ed25519PrivateKey, path: Path | None = None) -> None:
        self._key = key
        self._path = path
        self.peer_id = PeerId(base58.b58encode(_PEER + key.public_key().public_bytes_raw()).decode())

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    @classmethod
    def load_or_create(cls, path: Path) -> Self:
        """The identity in the file `path`, made there (mode 0600) if it is not. Raises IdentityError."""
        try:
            return cls(_load(path), path)
        except FileNotFoundError:
            return cls(_create(path), path)

    @classmethod
    def ephemeral(cls) -> Self:
        """An identity for one process, kept in memory."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def derived(cls, secret: bytes) -> Self:
        """The identity of whoever knows these 32 bytes."""
        return cls(Ed25519PrivateKey.from_private_bytes(secret))

    @property
    def secret(self) -> bytes:
        """The 32 bytes that `derived` takes."""
        return self._key.private_bytes_raw()

    @contextmanager
    def file(self) -> Iterator[Path]:
        """The key as a file, for the time that someone needs to read it; an ephemeral one is gone after that."""
        if self._path is not None:
            yield self._path
            return
        with tempfile.TemporaryDirectory(prefix="swarm-") as folder:
            path = Path(folder, "identity")
            _write(path, self._key)
            yield path

    def sign(self, data: bytes) -> bytes:
        """64 bytes that `verify` accepts for this peer id and `data`."""
        return self._key.sign(data)


def verify(peer_id: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether `signature` over `data` was made by the holder of `peer_id`; False for ids that are not Ed25519."""
    if not 0 < len(peer_id) <= _MAX_PEER_ID:
        return False
    try:
        raw = base58.b58decode(peer_id)
        if len(raw) != len(_PEER) + 32 or not raw.startswith(_PEER):
            return False
        Ed25519PublicKey.from_public_bytes(raw[len(_PEER) :]).verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(4096)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise IdentityError(f"the identity file {path} can't be read: {error.strerror}") from error
    if mode & 0o077:
        raise IdentityError(f"others can read the identity file {path}; run: chmod 600 {path}")
    if data.startswith(_RSA):
        raise IdentityError(f"{path} holds an RSA key; swarm needs Ed25519: give another --identity-path to make one")
    if not data.startswith(_PRIVATE) or len(data) != len(_PRIVATE) + 64:
        raise IdentityError(f"{path} holds no Ed25519 identity; give another --identity-path, or remove the file")
    key = Ed25519PrivateKey.from_private_bytes(data[len(_PRIVATE) :][:_SEED])
    if key.public_key().public_bytes_raw() != data[-32:]:
        raise IdentityError(f"{path} is damaged: its two halves don't match; remove the file to make a new identity")
    return key


def _create(path: Path) -> Ed25519PrivateKey:
    key = Ed25519PrivateKey.generate()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(path, key)
    except FileExistsError:
        return _load(path)  # another process was quicker
    except OSError as error:
        raise IdentityError(f"no identity can be made at {path}: {error.strerror}; give --identity-path") from error
    return key


def _write(path: Path, key: Ed25519PrivateKey) -> None:
    """A whole file or none: written beside its place and then linked to it, which fails where `path` exists."""
    data = _PRIVATE + key.private_bytes_raw() + key.public_key().public_bytes_raw()
    descriptor, draft = tempfile.mkstemp(prefix=".identity-", dir=path.parent)  # mode 0600, O_EXCL
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.link(draft, path)
    finally:
        os.unlink(draft)
