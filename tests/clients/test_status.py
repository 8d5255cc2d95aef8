import pytest

from clients.status import only
from swarm.cli import run
from swarm.errors import UsageError
from tests.clients.test_drawing import OTHER, SMALL, record

RECORDS = (record("a", 0, 30), record("b", 0, 8, model=OTHER, model_name="qwen", num_blocks=8))


def test_model_is_chosen_by_name_or_digest() -> None:
    assert only("qwen", RECORDS) == RECORDS[1:]
    assert only(SMALL[:8], RECORDS) == RECORDS[:1]
    assert only(SMALL, RECORDS) == RECORDS[:1]


@pytest.mark.parametrize("name", ["llama", SMALL[:7]])
def test_model_that_nobody_serves_is_said_with_those_that_are(name: str) -> None:
    with pytest.raises(UsageError, match="served are: qwen, smollm2"):
        only(name, RECORDS)


def test_swarm_must_be_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWARM_INITIAL_PEERS", raising=False)
    assert run(["status"]) == 2
    assert "--initial-peers" in capsys.readouterr().err
