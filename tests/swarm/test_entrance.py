import pytest

from swarm.entrance import parse_peers
from swarm.errors import UsageError

PEER = "/ip4/127.0.0.1/tcp/31330/p2p/12D3KooWGRUVh8ZDB8nTBCPNmKrVoGUrqVuRVuMcHkBPWKmd6yZi"


def test_peers_may_be_given_once_or_often_with_commas_or_blanks() -> None:
    other = PEER.replace("31330", "31331")
    assert parse_peers([f"{PEER},{other}", other]) == (PEER, other)
    assert parse_peers([f"{PEER} {other}"]) == (PEER, other)


@pytest.mark.parametrize("text", ["localhost:31330", "/ip4/127.0.0.1/tcp/31330", "12D3KooW", "/p2p/12D3KooW"])
def test_what_is_no_address_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="no peer's address"):
        parse_peers([text])
