"""Coverage-guided fuzzing of one target, in a process of its own:

    python -m tests.fuzz.fuzzer TARGET FOLDER -runs=N -seed=N …

With `all` for a target, the first byte of an input says which it is for.
`FOLDER` is given the seeds, and keeps what reached something new. Ends with 0 when nothing was found; what was found is
on stderr, its input in FOLDER.
"""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["swarm", "clients"]):
    from tests.fuzz.seeds import seeds
    from tests.fuzz.targets import TARGETS


def any_of_them(data: bytes) -> None:
    if data:
        list(TARGETS.values())[data[0] % len(TARGETS)](data[1:])


def beginnings(target: str) -> list[bytes]:
    if target != "all":
        return seeds(target)
    return [bytes([place]) + seed for place, each in enumerate(TARGETS) for seed in seeds(each)]


def main(target: str, folder: str, *options: str) -> None:
    for number, seed in enumerate(beginnings(target)):
        Path(folder, f"seed-{number}").write_bytes(seed)
    check = any_of_them if target == "all" else TARGETS[target]
    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/", folder], lambda data: check(bytes(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
