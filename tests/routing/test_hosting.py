"""Which adapter a name means, among all that strangers announce."""

from dataclasses import replace

import pytest

from routing.hosting import Hosted, find_hosted
from routing.view import View
from swarm.errors import MissingBlocks, UsageError
from swarm.record import PeerRecord, PeerState
from tests.routing.records import record, view

OLD, NEW = "aa" * 16, "bb" * 16


def host(peer: str, start: int, end: int, *adapters: tuple[str, str], **changes: object) -> PeerRecord:
    return replace(record(peer, start, end, num_blocks=4), adapters=adapters, **changes)


def seen(*records: PeerRecord) -> View:
    return view(4, list(records))


def test_a_name_means_what_is_hosted_for_every_block() -> None:
    peers = seen(host("a", 0, 3, ("style", OLD)), host("b", 2, 4, ("tone", NEW), ("style", OLD)), host("c", 0, 4))
    assert find_hosted(peers, "style") == Hosted("style", OLD)


def test_a_version_that_is_not_hosted_everywhere_does_not_stand_in_the_way() -> None:
    peers = seen(host("a", 0, 4, ("style", OLD)), host("b", 1, 4, ("style", NEW)))
    assert find_hosted(peers, "style").digest == OLD
    with pytest.raises(MissingBlocks, match="blocks 0:1 hosts the adapter style@bbbbbbbb") as caught:
        find_hosted(peers, "style@bb")
    assert caught.value.blocks == (0,)


def test_of_two_that_are_called_alike_one_has_to_be_chosen() -> None:
    peers = seen(host("a", 0, 4, ("style", OLD)), host("b", 0, 4, ("style", NEW)))
    with pytest.raises(UsageError, match=r"different adapters .* style@aaaaaaaa or style@bbbbbbbb"):
        find_hosted(peers, "style")
    assert find_hosted(peers, "style@bbbbbbbb") == Hosted("style", NEW)
    with pytest.raises(UsageError, match="no peer hosts an adapter called 'style' whose digest begins with cc"):
        find_hosted(peers, "style@cc")


def test_versions_are_never_put_together() -> None:
    peers = seen(host("a", 0, 3, ("style", OLD)), host("b", 2, 4, ("style", NEW)))
    with pytest.raises(MissingBlocks, match="blocks 3:4 hosts the adapter style@aaaaaaaa"):
        find_hosted(peers, "style")


def test_peers_that_are_not_online_host_nothing() -> None:
    peers = seen(host("a", 0, 4, ("style", OLD), state=PeerState.DRAINING), host("b", 0, 4, ("tone", NEW)))
    with pytest.raises(UsageError, match="no peer hosts an adapter called 'style'; hosted are: tone"):
        find_hosted(peers, "style")
    with pytest.raises(UsageError, match="hosted are: none"):
        find_hosted(seen(host("c", 0, 4)), "style")
