"""Real serving peers for tests: their own processes, identities and ports on loopback, always cleaned up.

with ServePeer("tiny", new_swarm=True) as first, ServePeer("tiny", join=[first]) as second: ...
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from swarm.ids import PeerId, Span
from swarm.subprocesses import ServeProcess

__all__ = ["ServePeer"]

THREADS = "1"  # a test machine has few cores and several peers
# Equal tokens are what tests look for, so weights are those of one process.
PLAIN = ("--threads", THREADS, "--port", "0", "--device", "cpu", "--dtype", "fp32")


class ServePeer(ServeProcess):
    """`swarm serve MODEL` with a fresh identity, one thread, and a port that the system picks. A context manager.

    `join`: serving peers whose swarm it joins; without any, it begins a new one; `entry` are options to
    give instead of these. `options` are passed on as they are. `host`: the address it listens on; `prefix`: what
    makes a command run where that is.
    """

    def __init__(
        self,
        model: str | Path,
        *options: str,
        join: Sequence["ServePeer"] = (),
        blocks: str | None = None,
        identity: Path | None = None,
        entry: Sequence[str] | None = None,
        name: str = "peer",
        host: str = "127.0.0.1",
        prefix: Sequence[str] = (),
    ) -> None:
        self._home = tempfile.TemporaryDirectory(prefix="swarm-test-")
        self.identity = identity or Path(self._home.name, "identity")
        if entry is None:
            entry = [f"--initial-peers={','.join(peer.addresses)}" for peer in join] or ["--new-swarm"]
        span = [f"--blocks={blocks}"] if blocks else []
        super().__init__(
            [str(model), *PLAIN, f"--host={host}", f"--identity-path={self.identity}", *entry, *span, *options],
            name=name,
            environment={
                "OMP_NUM_THREADS": THREADS,
                **dict.fromkeys(("XDG_STATE_HOME", "XDG_DATA_HOME"), self._home.name),
            },
            command=[*prefix, sys.executable, "-m", "swarm", "serve"],
        )

    @property
    def peer_id(self) -> PeerId:
        return self.ready.peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self.wait_ready().addresses

    @property
    def blocks(self) -> Span:
        return self.ready.blocks

    def family(self) -> list[psutil.Process]:
        """The peer's process and all below it (daemon, executor), while it lives."""
        peer = psutil.Process(self.pid)
        return [peer, *peer.children(recursive=True)]

    def close(self) -> None:
        super().close()
        self._home.cleanup()
