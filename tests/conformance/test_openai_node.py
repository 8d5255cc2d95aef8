"""OpenAI's own npm package, run by node: `node/run.mjs` does it all in one go, and its outcomes are judged here."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.conftest import KEY, MODEL, NOBODYS, QUESTION, Door, Local
from tests.conformance.waiting import wait_for

pytestmark = pytest.mark.skipif(
    shutil.which("node") is None or shutil.which("npm") is None, reason="node and npm are not on this machine's PATH"
)

NEW = 12
SOURCES = Path(__file__).parent / "node"


def run(command: list[str], folder: Path, **variables: str) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False, env={**os.environ, **variables}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(gateway: Door, base_url: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each scenario of run.mjs."""
    folder = shutil.copytree(SOURCES, tmp_path_factory.mktemp("node") / "client")
    run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], folder)
    asked = json.dumps({"model": MODEL, "nobodys": NOBODYS, "question": QUESTION, "tokens": NEW})
    said = run(["node", "run.mjs"], folder, OPENAI_BASE_URL=base_url, OPENAI_API_KEY=KEY, SWARM_ASKED=asked)
    found = json.loads(said)
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("way", ["plain", "streamed"])
def test_greedy_answer_is_that_of_one_process(outcomes: dict[str, Any], local: Local, way: str) -> None:
    assert outcomes[way]["text"] == local.answer(QUESTION, new=NEW)
    assert outcomes[way]["usage"]["prompt_tokens"] == local.prompt(QUESTION).shape[1]


def test_response_is_that_of_one_process(outcomes: dict[str, Any], local: Local) -> None:
    assert outcomes["responses"] == {"text": local.answer(QUESTION, new=NEW)}


def test_a_seed_gives_the_same_choices_twice(outcomes: dict[str, Any]) -> None:
    assert outcomes["seeded"]["once"] == outcomes["seeded"]["again"]
    assert len(set(outcomes["seeded"]["once"])) == 2


def test_answer_ends_before_a_stop_string(outcomes: dict[str, Any], local: Local) -> None:
    assert outcomes["stopped"] == {"text": local.answer(QUESTION, new=NEW).partition("a")[0], "reason": "stop"}


def test_logprobs_come_with_their_alternatives(outcomes: dict[str, Any], local: Local) -> None:
    assert len(outcomes["logprobs"]) > 1
    for token in outcomes["logprobs"]:
        best = token["top_logprobs"][0]
        assert len(token["top_logprobs"]) == 2
        assert (token["token"], token["logprob"]) == (best["token"], best["logprob"])


def test_required_tool_is_called_streamed_or_not(outcomes: dict[str, Any]) -> None:
    tools = outcomes["tools"]
    assert tools["reason"] == "tool_calls"
    assert tools["calls"] == tools["streamed"]
    name, arguments = tools["calls"][0]
    assert name == "get_weather"
    assert json.loads(arguments)["town"] in ("Paris", "Lyon")


def test_answer_fits_a_schema(outcomes: dict[str, Any]) -> None:
    assert outcomes["schema"]["town"] in ("Paris", "Lyon")


def test_client_that_leaves_ends_its_answer(outcomes: dict[str, Any], gateway: Door) -> None:
    assert outcomes["cancelled"] == {"chunks": 3}
    wait_for(lambda: gateway.metric("swarm:num_requests_running", model_name=MODEL) == 0)


@pytest.mark.parametrize(
    ("what", "kind", "status", "code", "param"),
    [
        ("key", "AuthenticationError", 401, "invalid_api_key", None),
        ("model", "NotFoundError", 404, "model_not_found", "model"),
        ("field", "BadRequestError", 400, None, "temperature"),
        ("long", "BadRequestError", 400, "context_length_exceeded", "messages"),
        ("peers", "InternalServerError", 503, "missing_blocks", None),
    ],
)
def test_each_error_is_of_its_class(
    outcomes: dict[str, Any], what: str, kind: str, status: int, code: str | None, param: str | None
) -> None:
    said = outcomes["errors"][what]
    assert (said["class"], said["status"], said["param"]) == (kind, status, param)
    assert code is None or said["code"] == code
