"""What an examination finds: a verdict on one thing, a sentence, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Verdict", "fail", "fine", "skipped", "warn"]


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """`check`: the thing, in a word or two; `todo`: empty where nothing has to be done."""

    check: str
    verdict: Verdict
    says: str
    todo: str = ""


def fine(check: str, says: str) -> Finding:
    return Finding(check, Verdict.OK, says)


def warn(check: str, says: str, todo: str) -> Finding:
    return Finding(check, Verdict.WARN, says, todo)


def fail(check: str, says: str, todo: str) -> Finding:
    return Finding(check, Verdict.FAIL, says, todo)


def skipped(check: str, says: str) -> Finding:
    return Finding(check, Verdict.SKIPPED, says)
