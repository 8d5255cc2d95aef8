"""What goes into a step: every answer that goes on, and as much of the prompts as may be."""

from clients.completion.limits import Limits
from clients.completion.plan import plan
from clients.completion.rows import Row

LIMITS = Limits(prompt_tokens=400, beside_tokens=40)


def prompt(tokens: int) -> Row:
    return Row([3] * tokens)


def going_on(number: int) -> list[Row]:
    return [Row([3] * 10, done=9) for _ in range(number)]


def sizes(rows: list[Row]) -> list[int]:
    return [piece.n for piece in plan(rows, LIMITS)]


def test_prompts_alone_fill_the_step_in_the_order_in_which_they_came() -> None:
    assert sizes([prompt(300), prompt(200), prompt(100)]) == [300, 100]


def test_answers_go_on_all_of_them_and_first() -> None:
    pieces = plan([prompt(300), *going_on(3)], LIMITS)
    assert [(piece.n, piece.wanted) for piece in pieces] == [(1, True)] * 3 + [(40, False)]


def test_prompts_get_more_where_more_of_them_wait_than_answers_go_on() -> None:
    assert sizes([*going_on(1), *(prompt(50) for _ in range(4))]) == [1, 50, 50, 50, 10]
    assert sum(sizes([*going_on(1), *(prompt(50) for _ in range(40))])) == 1 + 400
    assert sizes([*going_on(8), *(prompt(50) for _ in range(15))]) == [1] * 8 + [40]


def test_nothing_left_is_no_step() -> None:
    assert plan([Row([3] * 4, done=4)], LIMITS) == []
