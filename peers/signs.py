"""Figures as people read them at a glance, and commands as they can be pasted. Pure functions of text."""

from collections.abc import Iterator, Sequence

__all__ = ["BARS", "PLAIN_BARS", "duration", "grouped", "pasteable", "sparkline"]

BARS, PLAIN_BARS = "▁▂▃▄▅▆▇█", "_.-:=+*#"


def sparkline(values: Sequence[float], width: int, bars: str = BARS) -> str:
    """The latest of `values`, at most two to a column, the highest as a full bar; a line at the bottom is nothing."""
    latest = list(values[-2 * width :]) if width > 0 else []
    per_column = 2 if len(latest) > width else 1
    head = len(latest) % per_column  # so that columns end with the latest value
    columns = [latest[i : i + per_column] for i in range(head, len(latest), per_column)]
    means = [sum(column) / len(column) for column in columns]
    highest = max(means, default=0.0)
    if highest <= 0:
        return bars[0] * len(means)
    return "".join(bars[0] if mean <= 0 else bars[1 + round(mean / highest * (len(bars) - 2))] for mean in means)


def duration(seconds: float) -> str:
    """The two largest units of it: 3 d 4 h."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86_400)
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{int(seconds)} s"


def grouped(number: int) -> str:
    """1 234 567; digits in groups, of which no country reads the sign as a decimal point."""
    return f"{number:,}".replace(",", " ")


def pasteable(command: str, width: int) -> Iterator[str]:
    """`command` in lines that a shell takes as one: broken at a space where there is one, else anywhere. A backslash at
    the end of a line goes away with the line's end, even within a word."""
    rest = command
    while len(rest) > width > 1:
        space = rest.rfind(" ", 0, width - 1)
        at = space + 1 if space > 0 else width - 1
        yield rest[:at] + "\\"
        rest = rest[at:]
    yield rest
