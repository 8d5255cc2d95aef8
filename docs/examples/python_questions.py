"""Questions about Python's standard library, answered by its own docstrings: a file for `swarm finetune`.

python docs/examples/python_questions.py > questions.jsonl

Nothing is downloaded. Which rows come out depends on the version of Python alone.
"""

import inspect
import json
from collections.abc import Iterator
from importlib import import_module

# fmt: off
MODULES = (
    "argparse", "ast", "base64", "bisect", "collections", "configparser", "contextlib", "copy", "csv", "datetime",
    "decimal", "difflib", "email.utils", "fnmatch", "fractions", "functools", "glob", "gzip", "heapq", "html",
    "http.client", "inspect", "io", "ipaddress", "itertools", "json", "locale", "logging", "math", "operator", "os",
    "os.path", "pathlib", "pickle", "pprint", "random", "re", "sched", "secrets", "shelve", "shlex", "shutil", "socket",
    "sqlite3", "statistics", "string", "struct", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "time",
    "tokenize", "traceback", "types", "typing", "unicodedata", "urllib.parse", "uuid", "weakref", "zipfile", "zlib",
)
# fmt: on
LENGTHS = range(20, 161)  # characters of an answer


def answers(name: str) -> Iterator[tuple[str, str]]:
    """What is public in a module, by its full name, and the first sentence that it says about itself."""
    module = import_module(name)
    for member in sorted(getattr(module, "__all__", vars(module))):
        value = getattr(module, member)
        if member.startswith("_") or not callable(value):
            continue
        first = (inspect.getdoc(value) or "").partition("\n\n")[0].replace("\n", " ")
        sentence = first.partition(". ")[0].rstrip(".") + "."
        if len(sentence) in LENGTHS and not sentence.startswith(member):  # nor a mere signature
            yield f"{name}.{member}", sentence


def main() -> None:
    told: set[str] = set()  # a class of several modules is asked for once
    for module in MODULES:
        for name, answer in answers(module):
            if answer not in told:
                told.add(answer)
                print(json.dumps({"prompt": f"What does Python's `{name}` do?", "completion": answer}))


if __name__ == "__main__":
    main()
