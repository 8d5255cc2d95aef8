"""How parallel workers share the tests: a file is never split, and one worker runs all that are whole machines' work.

Peers, clients and browsers in processes of their own compete for the same cores: they come one after another, and
first, since they take longest. Whatever needs no more than its own process runs beside them.
"""

from typing import TYPE_CHECKING

from xdist.scheduler.loadscope import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

__all__ = ["Shares", "share"]

MACHINES = "machines"
OF_MACHINES = (
    "tests/real/",
    "tests/conformance/",
    "tests/browser/",
    "tests/soak/",
    "tests/users/",
    "tests/peers/test_serve_process.py",
)


def share(test: str) -> str:
    """What the test of this node id is run together with, in one worker."""
    file = test.partition("::")[0]
    return MACHINES if file.startswith(OF_MACHINES) else file


class Shares(LoadScopeScheduling):
    """Gives whole shares to workers, that of the machines before all others."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)

    def _assign_work_unit(self, node: "WorkerController") -> None:
        if MACHINES in self.workqueue:
            self.workqueue.move_to_end(MACHINES, last=False)
        super()._assign_work_unit(node)
