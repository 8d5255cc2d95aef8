import json
from dataclasses import replace
from typing import Any

from rich.console import Console

from clients.drawing import as_json, block_maps, render
from swarm.ids import Digest, PeerId, Span
from swarm.messages import Contact
from swarm.record import PeerRecord, PeerState

NOW = 1000.0
SMALL, OTHER = Digest("a" * 64), Digest("b" * 64)


def record(peer: str, start: int, end: int, **changes: Any) -> PeerRecord:
    made = PeerRecord(
        contact=Contact(PeerId(f"12D3KooW{peer}"), ("/ip4/192.0.2.1/tcp/31330",)),
        model=SMALL,
        model_name="smollm2",
        num_blocks=30,
        span=Span(start, end),
        state=PeerState.ONLINE,
        throughput=123.4,
        prefill=900.0,
        cache_left=16384,
        precision="fp32",
        version="0.1.0",
        public_name="Ada",
        reason="these blocks were held least",
        queue=0,
        issued=NOW - 12,
        expires=NOW + 60,
    )
    return replace(made, **changes)


def printed(*records: PeerRecord, width: int = 120) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(render(records, NOW))
    return capture.get()


def test_picture_shows_spans_figures_and_reasons() -> None:
    text = printed(record("aaaaaaaa", 0, 15), record("bbbbbbbb", 15, 30, public_name="Bob"))
    assert "smollm2 · 30 blocks · 2 online · every block stands once\n" in text
    assert "123 tok/s go through the weakest blocks, " in text
    assert "█" * 15 + "·" * 15 + "  0:15   online    Ada …aaaaaaaa" in text
    assert "·" * 15 + "█" * 15 + "  15:30  online    Bob …bbbbbbbb" in text
    assert "123 tok/s · cache left 16,384 · queue 0 · fp32 · version 0.1.0 · 12 s old" in text
    assert "these blocks were held least" in text
    assert "1" * 30 + "  online peers on each block" in text


def test_picture_and_json_show_who_does_not_train() -> None:
    records = (record("aaaaaaaa", 0, 15, trains=False), record("bbbbbbbb", 15, 30))
    assert printed(*records).count("no fine-tuning") == 1
    assert [peer["trains"] for peer in as_json(records, NOW)["models"][0]["peers"]] == [False, True]


def test_picture_and_json_show_who_hosts_which_adapters() -> None:
    records = (record("aaaaaaaa", 0, 15, adapters=(("style", "5eed" * 8), ("tone", "ab" * 16))), record("b", 15, 30))
    assert printed(*records).count("hosts adapters style@5eed5eed, tone@abababab") == 1
    first, second = as_json(records, NOW)["models"][0]["peers"]
    assert first["adapters"] == [{"name": "style", "digest": "5eed" * 8}, {"name": "tone", "digest": "ab" * 16}]
    assert second["adapters"] == []


def test_picture_fits_a_narrow_terminal() -> None:
    text = printed(record("aaaaaaaa", 0, 15), width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "█" * 15 in text


def test_missing_blocks_are_named() -> None:
    text = printed(record("a", 0, 10), record("b", 20, 25, state=PeerState.JOINING), record("c", 26, 30))
    assert "missing blocks 10:26" in text
    assert "joining" in text


def test_peers_of_every_state_are_shown_and_only_online_ones_count() -> None:
    records = [record(state.value, 0, 30, state=state) for state in PeerState]
    text = printed(*records)
    assert all(state.value in text for state in PeerState)
    assert "1 online · every block stands once" in text


def test_bar_of_many_blocks_is_scaled() -> None:
    text = printed(record("a", 0, 41, num_blocks=80), record("b", 0, 80, num_blocks=80))
    assert "█" * 20 + "▒" + "·" * 19 + "  0:41" in text


def test_names_of_strangers_are_plain_text() -> None:
    text = printed(
        record("\x1b[2J", 0, 30, public_name="[bold]x[/bold]\x1b]0;t\x07", reason="\u202eabc\n[red]", precision="\x08")
    )
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert "[bold]x[/bold]\ufffd]0;t\ufffd" in text
    assert "\ufffdabc [red]" in text


def test_expired_and_absurd_records_are_left_out() -> None:
    bad = (
        record("a", 0, 30, expires=NOW),
        record("b", 0, 30, throughput=float("nan"), model=OTHER),
    )
    assert block_maps(bad, NOW) == ()
    assert "No peer serves anything" in printed(*bad)


def test_one_liar_does_not_change_the_model() -> None:
    (found,) = block_maps(
        [record("a", 0, 30), record("b", 0, 30), record("c", 0, 5, num_blocks=5, model_name="mine")], NOW
    )
    assert (found.name, len(found.blocks), len(found.peers)) == ("smollm2", 30, 2)


def test_every_model_has_its_own_map() -> None:
    maps = block_maps([record("a", 0, 30), record("b", 0, 4, model=OTHER, model_name="qwen", num_blocks=8)], NOW)
    assert [(found.name, [str(span) for span in found.missing]) for found in maps] == [
        ("qwen", ["4:8"]),
        ("smollm2", []),
    ]


def test_json_says_the_same() -> None:
    (model,) = json.loads(json.dumps(as_json([record("a", 0, 20), record("b", 10, 20)], NOW)))["models"]
    assert (model["model"], model["digest"], model["num_blocks"]) == ("smollm2", SMALL, 30)
    assert model["missing"] == [[20, 30]]
    assert model["replication"] == [1] * 10 + [2] * 10 + [0] * 10
    first = model["peers"][0]
    assert first == {
        "peer_id": "12D3KooWa",
        "public_name": "Ada",
        "addresses": ["/ip4/192.0.2.1/tcp/31330"],
        "relayed": False,
        "state": "online",
        "blocks": [0, 20],
        "throughput": 123.4,
        "prefill": 900.0,
        "cache_left": 16384,
        "queue": 0,
        "precision": "fp32",
        "version": "0.1.0",
        "reason": "these blocks were held least",
        "age": 12.0,
        "trains": True,
        "adapters": [],
    }
