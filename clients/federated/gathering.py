"""How members of a run find each other: in the directory of the swarm, under a key that only they hold."""

import asyncio
import logging
import time
from collections.abc import Callable

from clients.federated.terms import Terms
from swarm.directory import Directory
from swarm.errors import NetworkError, RecordError
from swarm.fields import Contact
from swarm.record import Presence

__all__ = ["gather"]

LIFETIME = 180.0  # seconds for which one who is gone without a word can still be found
RENEWAL = LIFETIME / 3
ALONE = 5.0  # seconds between looks while nobody is there
TOGETHER = 30.0  # and while somebody is, who tells of others
_log = logging.getLogger(__name__)


async def gather(
    directory: Directory, terms: Terms, me: Contact, meet: Callable[[Contact], None], alone: Callable[[], bool]
) -> None:
    """Say again and again, until cancelled, that `me` takes part; `meet` is told who else says so."""
    run = terms.run
    renewed = -RENEWAL
    now = asyncio.get_running_loop().time
    while True:
        try:
            if now() >= renewed + RENEWAL:
                issued = time.time()
                await directory.appear(Presence(me, run.peer_id, issued, issued + LIFETIME), run)
                renewed = now()
            for presence in await directory.present(run.peer_id):
                if presence.peer != me.peer:
                    meet(presence.contact)
        except (NetworkError, RecordError) as error:
            _log.warning("members of this run can't be found in the directory for now: %s", error)
        await asyncio.sleep(ALONE if alone() else TOGETHER)
