import json
from dataclasses import replace

from peers.executor_settings import Streaming
from peers.ready import Ready
from swarm.ids import PeerId, Span

LOCAL = "/ip4/127.0.0.1/tcp/31330/p2p/12D3KooWabc"
LAN = "/ip4/192.168.1.4/tcp/31330/p2p/12D3KooWabc"


def ready(*addresses: str) -> Ready:
    return Ready(
        peer_id=PeerId("12D3KooWabc"),
        addresses=addresses,
        model="my model",
        blocks=Span(0, 15),
        num_blocks=30,
        reason="no live peer holds them",
        precision="fp32",
        precision_reason="the quickest here",
        device="2 cores",
        kv_tokens=4096,
        throughput=33.333,
    )


def test_join_line_names_an_address_that_other_machines_can_reach() -> None:
    assert ready(LOCAL, LAN).join == f"swarm-serve 'my model' --initial-peers {LAN}"


def test_join_line_of_a_loopback_peer_names_its_only_address() -> None:
    assert ready(LOCAL).join.endswith(LOCAL)


def test_event_is_json_with_the_promised_fields() -> None:
    event = json.loads(json.dumps(ready(LOCAL).event()))
    assert event["blocks"] == [0, 15]
    assert {"peer_id", "addresses", "model", "blocks", "reason", "join"} <= event.keys()


def test_text_says_what_is_held_and_why_and_how_to_join() -> None:
    text = ready(LOCAL, LAN).text()
    for part in (
        "0:15 (15 of 30)",
        "no live peer holds them",
        LOCAL,
        LAN,
        "swarm-serve",
        "swarm run",
        "4096 tokens",
        "fp32: the quickest here",
    ):
        assert part in text


def test_text_and_event_say_what_does_not_stay_in_memory() -> None:
    streaming = Streaming(blocks=4, size=2_000_000_000, rate=1_000_000_000.0)
    peer = replace(ready(LOCAL), streaming=streaming)
    assert "4 blocks, 2 GB, are read anew in each step" in peer.text()
    assert "1 GB/s, so 0.5 steps/s at most" in peer.text()
    assert (ready(LOCAL).event()["streamed_blocks"], peer.event()["streamed_blocks"]) == (0, 4)
    assert "steps/s" not in replace(peer, streaming=replace(streaming, rate=None)).text()


def test_text_and_event_name_the_adapters_that_are_hosted() -> None:
    peer = replace(ready(LOCAL), adapters=(("style", "5eed"), ("tone", "ab")))
    assert "adapters   style, tone" in peer.text()
    assert peer.event()["adapters"] == [{"name": "style", "digest": "5eed"}, {"name": "tone", "digest": "ab"}]
