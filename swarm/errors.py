"""Every error swarm raises on purpose.

    SwarmError
    ├── UsageError            what the caller gave is wrong: an option, a file, a name
    │   ├── ModelError        a model that can't be found, read, or run in a swarm
    │   └── IdentityError     an identity file that can't be read or trusted
    ├── NetworkError          the network itself: a daemon, a port, a bootstrap peer
    │   ├── Unreachable       a peer could not be dialled
    │   └── StreamClosed      the other side of a stream is gone
    ├── ProtocolError         a peer sent what the protocol does not allow
    │   ├── WireError         bytes that are no frame
    │   ├── RecordError       a record that is forged, stale or malformed
    │   └── AccessError       somebody may not: no pass of a private swarm, or one that has ended or was taken back
    ├── MissingBlocks         no live peer holds some block that a chain needs
    ├── Busy                  peers are full; carries when to ask again
    └── HopError              a hop refused or failed a session; carries the code

A message says what happened, to which peer or block, and what the reader can do.
"""

from collections.abc import Sequence

__all__ = [
    "AccessError",
    "Busy",
    "HopError",
    "IdentityError",
    "MissingBlocks",
    "ModelError",
    "NetworkError",
    "ProtocolError",
    "RecordError",
    "StreamClosed",
    "SwarmError",
    "Unreachable",
    "UsageError",
    "WireError",
]


class SwarmError(Exception):
    """Root of all errors of this project."""


class UsageError(SwarmError):
    """The caller can mend this: the message says how."""


class ModelError(UsageError):
    """A model that can't be found, read, or run in a swarm."""


class IdentityError(UsageError):
    """An identity file that can't be read or trusted."""


class NetworkError(SwarmError):
    """The network under us does not work: a daemon, a port, a bootstrap peer."""


class Unreachable(NetworkError):
    """A peer could not be dialled."""


class StreamClosed(NetworkError):
    """The other side of a stream is gone."""


class ProtocolError(SwarmError):
    """A peer sent what the protocol does not allow."""


class WireError(ProtocolError):
    """Bytes that are no frame."""


class RecordError(ProtocolError):
    """A record that is forged, stale or malformed."""


class AccessError(ProtocolError):
    """Somebody may not: no pass of a private swarm, or one that has ended or was taken back."""


class MissingBlocks(SwarmError):
    """No live peer holds some block that a chain needs."""

    def __init__(self, blocks: Sequence[int], message: str) -> None:
        super().__init__(message)
        self.blocks = tuple(blocks)


class Busy(SwarmError):
    """Peers are full; ask again after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class HopError(SwarmError):
    """A hop refused or failed a session; `code` is one of `swarm.messages.FaultCode`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
