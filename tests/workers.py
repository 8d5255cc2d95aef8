"""How parallel workers share the tests: a file is never split, and whole swarms come one after another in one worker.

Peers, clients and browsers in processes of their own compete for the same cores. Tests of many of them come first, in
one worker, and whatever needs no more than its own process runs beside them; those of a few come last.
"""

from typing import TYPE_CHECKING

from xdist.scheduler.loadscope import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.workermanage import WorkerController

__all__ = ["Shares", "share"]

SWARMS = "swarms"
OF_SWARMS = ("tests/real/", "tests/conformance/", "tests/browser/", "tests/soak/", "tests/wan/")
PEERS = ("tests/users/", "tests/peers/test_serve_process.py")


def share(test: str) -> str:
    """What the test of this node id is run together with, in one worker."""
    file = test.partition("::")[0]
    if file.startswith(OF_SWARMS):
        return SWARMS
    return next((place for place in PEERS if file.startswith(place)), file)


class Shares(LoadScopeScheduling):
    """Gives whole shares to workers: of swarms before all others, of single peers after them."""

    def _split_scope(self, nodeid: str) -> str:
        return share(nodeid)

    def _assign_work_unit(self, node: "WorkerController") -> None:
        """Whatever stands first in the queue is next."""
        if SWARMS in self.workqueue:
            self.workqueue.move_to_end(SWARMS, last=False)
        for place in PEERS:
            if place in self.workqueue:
                self.workqueue.move_to_end(place)
        super()._assign_work_unit(node)
