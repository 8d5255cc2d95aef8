"""API keys: how they are written down, kept and looked up.

A key is written as one word, which may be followed by words `name=value` that belong to it:

    sk-… name=alice requests=60 tokens=20000 concurrent=4

`requests` and `tokens` are limits a minute. A file has one key a line; what follows # is no part of it. Kept are names,
limits and sha256 digests. Those are as good as more costly ones, because a key has to be too long to be guessed.
"""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from clients.gateway.allowance import Limits, User
from clients.gateway.errors import ApiError
from swarm.errors import UsageError

__all__ = ["Key", "Keys", "parse_keys"]

SHORTEST = 16  # characters; as base64 or hex that is 64 bits and more
LONGEST = 512
MOST_KEYS = 10_000
_WORD = re.compile(r"[\x21-\x7e]+")  # what may stand in a header
_NAME = re.compile(r"[\w.@-]{1,64}")
ADVICE = "make a key with: python3 -c 'import secrets; print(\"sk-\" + secrets.token_urlsafe(24))'"


@dataclass(frozen=True, slots=True)
class Key:
    """`digest`: the sha256 of the key itself, which is not kept."""

    digest: bytes = field(repr=False)
    name: str
    limits: Limits = field(default_factory=Limits)


def parse_keys(texts: Iterable[str]) -> tuple[Key, ...]:
    """Keys from options: each text is a key, a file of keys, or a part `name=value` of the key before it. Raises
    UsageError; a message never shows a key."""
    words = [word for text in texts for word in _words(text)]
    keys: list[Key] = []
    for word, where in words:
        name, equals, value = word.partition("=")
        if equals and name in ("name", "requests", "tokens", "concurrent"):
            if not keys:
                raise UsageError(f"{where}: {name}= has to follow the key that it belongs to")
            keys[-1] = _with(keys[-1], name, value, where)
        else:
            keys.append(_key(word, len(keys) + 1, where))
    for what in ("name", "digest"):
        if len({getattr(key, what) for key in keys}) < len(keys):
            raise UsageError(f"two API keys {'have the same name' if what == 'name' else 'are the same'}")
    if len(keys) > MOST_KEYS:
        raise UsageError(f"at most {MOST_KEYS} API keys can be given, not {len(keys)}")
    return tuple(keys)


def _words(text: str) -> list[tuple[str, str]]:
    """The words of a text or of the file that it names, each with where it is from."""
    path = Path(text).expanduser()
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # no name for a file
        is_file = False
    if not is_file:
        return [(word, "--api-key") for word in text.split()]
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the file of API keys {path} can't be read: {error}") from None
    numbered = enumerate((line.partition("#")[0] for line in lines), start=1)
    words = [(word, f"{path}, line {number}") for number, line in numbered for word in line.split()]
    if not words:
        raise UsageError(f"the file of API keys {path} is empty; {ADVICE}")
    return words


def _key(word: str, number: int, where: str) -> Key:
    if not _WORD.fullmatch(word) or not SHORTEST <= len(word) <= LONGEST:
        said = "no such file, and as a key it is too short" if len(word) < SHORTEST else "that can't be an API key"
        raise UsageError(f"{where}: {said} ({SHORTEST} to {LONGEST} letters, digits or signs); {ADVICE}")
    return Key(_digest(word), f"key-{number}")


def _with(key: Key, name: str, value: str, where: str) -> Key:
    if name == "name":
        if not _NAME.fullmatch(value):
            raise UsageError(f"{where}: a key's name is made of letters, digits and . - _ @, at most 64 of them")
        return replace(key, name=value)
    if not value.isdecimal() or int(value) < 1:
        raise UsageError(f"{where}: {name}= takes a whole number of at least 1")
    return replace(key, limits=replace(key.limits, **{name: int(value)}))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


class Keys:
    """Who is asking. Without any key, everyone is the same user, who may do everything."""

    def __init__(self, keys: Iterable[Key], clock: Callable[[], float]) -> None:
        self._users = {key.digest: User(key.name, key.limits, clock) for key in keys}
        self._anyone = User("anyone", Limits(), clock)

    @property
    def needed(self) -> bool:
        return bool(self._users)

    def user(self, headers: Mapping[str, str]) -> User:
        """Whoever sent `headers`. Raises ApiError 401."""
        if not self._users:
            return self._anyone
        scheme, _, token = headers.get("authorization", "").partition(" ")
        secret = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "").strip()
        if not secret:
            raise _refused("An API key is needed: send it as Authorization: Bearer KEY")
        given = _digest(secret)
        # Every key is compared in full, so that the time it takes tells nothing.
        found = [user for digest, user in self._users.items() if hmac.compare_digest(digest, given)]
        if not found:
            raise _refused("This API key is not known here")
        return found[0]


def _refused(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key")
