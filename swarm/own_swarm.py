"""The private swarm that a user owns: its key, and whom they have invited, in files that they alone can read."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from swarm import atomic
from swarm.errors import UsageError
from swarm.ids import PeerId
from swarm.invites import MAX_TEXT, Invite, Role, short_id

__all__ = ["Invited", "OwnSwarm", "revocations_path"]


@dataclass(frozen=True, slots=True)
class Invited:
    """One who was: `holder` is the invite's key, times are Unix times."""

    holder: PeerId
    role: str
    made: float
    expires: float


def revocations_path(data: Path, swarm: PeerId) -> Path:
    """Where a member keeps what was taken back in `swarm`."""
    return data / "private" / f"revoked-{short_id(swarm)}"


class OwnSwarm:
    """In the user's folder `data`."""

    def __init__(self, data: Path) -> None:
        self._owner = data / "private" / "owner"
        self._invited = data / "private" / "invited.json"

    def found(self) -> Invite:
        """The owner's own invite, made now if there is none. Raises UsageError when it can't be read or written."""
        if not self._owner.exists():
            self._write(self._owner, Invite.found().text())
        return self.owner()

    def owner(self) -> Invite:
        """Raises UsageError when there is none, or it can't be read."""
        try:
            return Invite.read(self._owner.read_text()[: MAX_TEXT + 1])
        except FileNotFoundError:
            raise UsageError(
                "this user owns no private swarm: begin one with swarm-serve MODEL --private, or give --as with the "
                "invite of an admin"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the key of your private swarm, {self._owner}, can't be read: {error}") from error

    def remember(self, addresses: Sequence[str]) -> None:
        """Where the swarm can be found, for invites that are made from now on."""
        self._write(self._owner, replace(self.owner(), addresses=tuple(addresses)).text())

    def note(self, invite: Invite, role: Role) -> None:
        """That `invite` was made for somebody. Those that have ended are forgotten."""
        now = time.time()
        new = Invited(invite.key.peer_id, str(role), now, invite.right.expires)
        lasting = [known for known in self.invited() if known.expires > now]
        self._write(self._invited, json.dumps([asdict(known) for known in (*lasting, new)]))

    def invited(self) -> tuple[Invited, ...]:
        """Raises UsageError when the file is damaged."""
        try:
            entries = json.loads(self._invited.read_text())
            return tuple(Invited(**entry) for entry in entries)
        except FileNotFoundError:
            return ()
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"the list of invites, {self._invited}, can't be read: {error}") from error

    def _write(self, path: Path, text: str) -> None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            atomic.write_file(path, text.encode())  # mode 0600
        except OSError as error:
            raise UsageError(f"{path} can't be written: {error.strerror}") from error
