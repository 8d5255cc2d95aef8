"""What the gateway serves for browsers: the pages, their files and policy, and the picture of the swarm."""

import gzip
import json
import re
import subprocess
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import replace
from http.client import HTTPResponse
from pathlib import Path

import pytest
from starlette.routing import Route

from clients.gateway.page import PAGES, STATIC, TYPES, Edition
from clients.gateway.served import Served
from clients.gateway.swarm_view import Watching
from swarm.ids import Span
from swarm.record import PeerRecord, PeerState
from tests.clients.gateway.live import LiveGateway, record, view_of

VENDOR = STATIC / "vendor"


def get(live: LiveGateway, path: str, headers: Mapping[str, str] | None = None) -> HTTPResponse:
    response: HTTPResponse = urllib.request.urlopen(
        urllib.request.Request(live.url + path, headers=dict(headers or {})), timeout=30
    )
    return response


def addresses(page: str) -> list[str]:
    return re.findall(r'(?:src|href)="(/static/[^"]+)"', page)


@pytest.mark.parametrize("path", PAGES)
def test_page_runs_nothing_but_files_of_this_gateway(live: LiveGateway, path: str) -> None:
    with get(live, path) as response:
        policy = response.headers["Content-Security-Policy"].split("; ")
        page = response.read().decode()
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"
    assert {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'"} <= set(policy)
    assert {"base-uri 'none'", "form-action 'none'", "connect-src 'self'", "img-src 'self' data:"} <= set(policy)
    assert "unsafe" not in " ".join(policy)
    assert re.findall(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", page) == []


@pytest.mark.parametrize("path", PAGES)
def test_all_that_a_page_names_is_served_and_kept(live: LiveGateway, path: str) -> None:
    with get(live, path) as response:
        assert response.headers["Cache-Control"] == "no-cache"
        named = addresses(response.read().decode())
    assert any(address.endswith("/vendor/preact.js") for address in named)
    assert any(address.endswith("/marked.js") for address in named) == (path == "/")
    for address in named:
        with get(live, address) as response:
            assert "immutable" in response.headers["Cache-Control"]
            assert response.headers["Content-Type"] == TYPES[Path(address).suffix]


def test_file_that_a_browser_has_is_not_sent_again(live: LiveGateway) -> None:
    with get(live, "/") as response:
        tag = response.headers["ETag"]
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(live, "/", {"If-None-Match": f'"other", W/{tag}'})
    assert caught.value.code == 304
    caught.value.close()


def test_page_is_packed_for_those_who_unpack(live: LiveGateway) -> None:
    with get(live, "/") as plain, get(live, "/", {"Accept-Encoding": "gzip, br"}) as packed:
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed.read()) == plain.read()


@pytest.mark.parametrize(
    "path",
    [
        "/static/{edition}/../page.py",
        "/static/{edition}/..%2fpage.py",
        "/static/{edition}//etc/passwd",
        "/static/{edition}/vendor/update.sh",
        "/static/{edition}/chat.html",
        "/static/other/chat/main.js",
        "/static/",
    ],
)
def test_what_is_no_file_of_the_page_is_not_found(live: LiveGateway, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        get(live, path.format(edition=Edition().name))
    assert caught.value.code == 404
    caught.value.close()


def test_changed_file_has_another_address(tmp_path: Path) -> None:
    def edition(style: str) -> Edition:
        for page in PAGES.values():
            (tmp_path / f"{page}.html").write_text('<head><link href="/static/a.css"></head>')
        (tmp_path / "a.css").write_text(style)
        return Edition(tmp_path)

    before, after = edition("a{}"), edition("b{}")
    assert set(before.addresses).isdisjoint(after.addresses)
    assert after.addresses[0].encode() in after.pages["/"].body


def test_modules_import_only_modules_that_are_there() -> None:
    wrong = [
        f"{module.relative_to(STATIC)}: {name}"
        for module in STATIC.rglob("*.js")
        for name in re.findall(r'^(?:import|export)\b[^;"]*?from\s*"([^"]+)"', module.read_text(), re.MULTILINE)
        if not name.startswith(".") or not (module.parent / name).is_file()
    ]
    assert wrong == []


def test_modules_make_html_of_nothing() -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|dangerouslySet|\beval\(|new Function"
    ours = [path for path in STATIC.rglob("*.js") if path.parent != VENDOR]
    assert [path.name for path in ours if re.search(sinks, path.read_text())] == []


def test_vendored_modules_say_whence_they_are_and_under_which_licence() -> None:
    rows = [line for line in (VENDOR / "README.md").read_text().splitlines() if line.startswith("| `")]
    told = {name for row in rows for name in re.findall(r"`([\w.]+)`", row)}
    assert told == {path.name for path in VENDOR.iterdir()} - {"README.md", "update.sh"}
    assert all(re.search(r"\| \d+\.\d+\.\d+ \|", row) for row in rows)


def test_files_of_the_page_are_tracked_so_that_the_wheel_has_them() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", *map(str, STATIC.rglob("*"))], cwd=STATIC, capture_output=True, text=True, check=False
    )
    assert ignored.stdout == ""


# --- the picture of the swarm ------------------------------------------------------------------------------------


def test_picture_tells_who_holds_what(live: LiveGateway) -> None:
    with get(live, "/swarm.json") as response:
        (model,) = json.load(response)["models"]
    assert (model["id"], model["num_blocks"], model["missing"]) == ("tiny", 4, [])
    assert model["replication"] == [1, 1, 1, 1]
    assert [(peer["public_name"], peer["blocks"], peer["state"]) for peer in model["peers"]] == [
        ("ada", [0, 2], "online"),
        ("bela", [2, 4], "online"),
    ]


def test_picture_tells_no_address_and_no_whole_id(live: LiveGateway) -> None:
    with get(live, "/swarm.json") as response:
        text = response.read().decode()
    assert "/memory/" not in text
    assert "id-of-ada" not in text


def held_by(played: Served, *peers: PeerRecord) -> Served:
    view = view_of(*peers)
    return replace(played, look=lambda: view)


def test_picture_of_an_incomplete_swarm_names_the_missing_blocks(played: Served) -> None:
    joining = record("carl", Span(0, 2), state=PeerState.JOINING)
    with (
        LiveGateway([held_by(played, joining, record("bela", Span(2, 3)))]) as live,
        get(live, "/swarm.json") as response,
    ):
        (model,) = json.load(response)["models"]
    assert model["missing"] == [[0, 2], [3, 4]]
    assert model["throughput"] == 0


def test_picture_of_an_empty_swarm_is_a_picture(played: Served) -> None:
    with LiveGateway([held_by(played)]) as live, get(live, "/swarm.json") as response:
        (model,) = json.load(response)["models"]
    assert (model["id"], model["missing"], model["peers"]) == ("tiny", [[0, 4]], [])


def test_strange_names_are_made_plain(played: Served) -> None:
    strange = held_by(played, record("\u202eada\x1b[2J" + "a" * 100, Span(0, 4)))
    with LiveGateway([strange]) as live, get(live, "/swarm.json") as response:
        (model,) = json.load(response)["models"]
    name = model["peers"][0]["public_name"]
    assert name.isprintable()
    assert len(name) <= 41


def test_page_that_stays_open_is_told_of_every_change(played: Served) -> None:
    views = [view_of(record("ada", Span(0, 4))), view_of(record("ada", Span(0, 4)), record("bela", Span(2, 4)))]
    served = replace(played, look=lambda: views[0])
    with LiveGateway([served]) as live, get(live, "/swarm/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        first = json.loads(response.readline().removeprefix(b"data: "))
        live.call(views.pop, 0)
        lines = iter(response.readline, b"")
        second = json.loads(next(line for line in lines if line.startswith(b"data: ")).removeprefix(b"data: "))
    assert first["models"][0]["replication"] == [1, 1, 1, 1]
    assert second["models"][0]["replication"] == [1, 1, 2, 2]


def test_gateway_that_leaves_keeps_no_page_waiting(live: LiveGateway) -> None:
    with get(live, "/swarm/events") as response:
        response.readline()
        live.call(live.gateway.leaving.set)
        assert response.read().strip() == b""


def test_no_more_pages_watch_than_may(live: LiveGateway) -> None:
    live.add(Route("/few", Watching(most=1).events))
    with get(live, "/few") as response:
        response.readline()
        with pytest.raises(urllib.error.HTTPError) as caught:
            get(live, "/few")
    assert (caught.value.code, caught.value.headers["Retry-After"]) == (503, "30")
    caught.value.close()
