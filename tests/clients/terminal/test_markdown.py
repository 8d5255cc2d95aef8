import io

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from clients.terminal.markdown import Block, Growing, Tail

TEXT = """# Title

A paragraph
of two lines.

```python
print("one")

print("two")
```

- a
- b

1. c

| x | y |
|---|---|
| 1 | 2 |

The end."""


def shown(*parts: object, width: int = 60) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(*parts, sep="\n")
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def grow(text: str, cuts: list[int]) -> list[str]:
    growing, blocks, at = Growing(), list[str](), 0
    for cut in [*sorted(cuts), len(text)]:
        growing.add(text[at:cut])
        at = cut
        blocks += growing.settled()
    return [*blocks, growing.rest]


@given(st.lists(st.integers(0, len(TEXT)), max_size=40))
def test_blocks_are_those_of_the_whole_text_however_it_comes(cuts: list[int]) -> None:
    blocks = grow(TEXT, cuts)
    assert "".join(blocks) == TEXT
    assert [block.strip() for block in blocks] == [block.strip() for block in grow(TEXT, [])]


def test_block_that_may_still_grow_is_not_settled() -> None:
    growing = Growing()
    growing.add("One.\n\n```\ncode\n\n# no heading\n")
    assert growing.settled() == ("One.\n\n",)
    assert growing.settled() == ()
    assert growing.rest.startswith("```")


def test_html_and_addresses_are_shown_as_they_are() -> None:
    out = shown(Block("<think>so</think>\n\n<div>\nhidden?\n</div>\n\n[click](http://evil.example)"))
    for text in ("<think>so</think>", "hidden?", "http://evil.example"):
        assert text in out
    assert "\x1b]8" not in out


def test_of_a_block_taller_than_the_screen_the_end_is_drawn() -> None:
    out = shown(Tail("\n".join(map(str, range(100))), 3, ["below"])).split()
    assert out == ["97", "98", "99", "below"]
