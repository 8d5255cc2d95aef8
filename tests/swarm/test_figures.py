import json

import pytest

from swarm.errors import UsageError
from swarm.figures import Spread, new_table, publish, whole_numbers


def test_spread_is_the_median_between_the_extremes() -> None:
    spread = Spread.of([3.0, 1.0, 10.0])
    assert (spread.median, spread.low, spread.high) == (3.0, 1.0, 10.0)
    assert str(spread) == "3 (1 to 10.0)"


def test_last_line_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    table = new_table("a title", "", "seconds")
    table.add_row("a name", "1.00")
    publish("peer", [table], {"figures": {"a name": 1.0}})
    lines = capsys.readouterr().out.splitlines()
    assert "a title" in lines[0]
    said = json.loads(lines[-1])
    assert (said["bench"], said["figures"]) == ("peer", {"a name": 1.0})
    assert {"cores", "machine", "version"} < set(said)
    publish("peer", [table], {}, alone=True)
    assert json.loads(capsys.readouterr().out)["bench"] == "peer"


@pytest.mark.parametrize(("text", "numbers"), [("1", (1,)), ("1,4, 16", (1, 4, 16)), ("2 2", (2,))])
def test_numbers_of_an_option_are_read(text: str, numbers: tuple[int, ...]) -> None:
    assert whole_numbers("--rows", text) == numbers


@pytest.mark.parametrize("text", ["", ",", "0", "-1", "1.5", "one"])
def test_what_is_no_number_is_refused_in_words(text: str) -> None:
    with pytest.raises(UsageError, match="--rows takes whole numbers"):
        whole_numbers("--rows", text)
