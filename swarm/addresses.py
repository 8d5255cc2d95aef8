"""Addresses as people write them: checked before anything is started with them, and refused in words."""

import ipaddress
import re
import socket

import base58
from hivemind.utils.multiaddr import Multiaddr

from swarm.errors import NetworkError, UsageError
from swarm.ids import PeerId

__all__ = ["announced", "cannot_listen", "check_free", "listen_address", "packed", "peer_of"]

_PEER = re.compile(r"/p2p/([^/]+)")
_P2P = bytes([0xA5, 0x03])  # the code of /p2p/, as a varint


def peer_of(address: str) -> PeerId:
    """The peer id at the end of a multiaddress. Raises UsageError for anything else."""
    _multiaddress(address)
    _, found, peer = address.rpartition("/p2p/")
    if not found or "/" in peer:
        raise UsageError(f"'{address}' does not end in /p2p/PEER-ID: copy the whole address of an initial peer")
    return PeerId(peer)


def _multiaddress(text: str) -> str:
    try:
        return str(Multiaddr(text))
    except ValueError as error:
        hint = "write it as in /ip4/203.0.113.5/tcp/31330/p2p/PEER-ID"
        raise UsageError(f"'{text}' is no multiaddress ({error}); {hint}") from error


def packed(address: str) -> bytes:
    """A multiaddress in binary. hivemind writes peer ids inside of one as the daemon does not read them. Raises
    ValueError."""
    found = b""
    for index, part in enumerate(_PEER.split(address)):
        if index % 2:
            peer = base58.b58decode(part)
            found += _P2P + bytes([len(peer)]) + peer  # no id is as long as 128 bytes, where a varint takes two
        elif part:
            found += Multiaddr(part).to_bytes()
    return found


def announced(text: str) -> str:
    """`text` as a multiaddress to tell others; needs no peer id. Raises UsageError."""
    if "0" in re.findall(r"/(?:tcp|udp)/(\d+)", text):
        raise UsageError(f"'{text}' can't be announced: give the port at which others reach this machine, and --port")
    return _multiaddress(text)


def listen_address(host: str, port: int) -> str:
    """The multiaddress to listen at. Raises UsageError."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        raise UsageError(f"'{host}' is no IP address to listen on: give one, for example 0.0.0.0") from None
    if not 0 <= port < 1 << 16:
        raise UsageError(f"{port} is no port: give a number in 0..65535, 0 for any free one")
    return f"/ip{version}/{host}/tcp/{port}"


def check_free(host: str, port: int) -> None:
    """Raises NetworkError for a port in use. libp2p itself would share it with whoever has it, and the two would get
    each other's connections."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise cannot_listen(f"{host}:{port}", error.strerror) from error


def cannot_listen(place: str, reason: str | None) -> NetworkError:
    """To be raised for a `place` at which one may not listen."""
    return NetworkError(f"can't listen on {place}: {reason}; give another --host or --port")
