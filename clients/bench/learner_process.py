"""A client that trains in a process of its own: `python -m clients.bench.learner_process`.

One line of JSON comes in, a `Lesson`; `{"ready": true}` goes out once a first step is done. Each further line, with
`first`, the number of a batch, and `steps`, is answered when so many steps are done, with their losses. It ends with
its standard input.
"""

import json
import sys
from pathlib import Path
from typing import Any, TextIO

from clients.bench.learner import Learner, random_batch, with_lora
from clients.bench.lessons import Lesson
from clients.model import SwarmModelForCausalLM

WARM_UP = 1 << 20  # the number of a batch that is nobody's


def serve(lesson: Lesson, asked: TextIO, said: TextIO) -> None:
    """Until `asked` ends."""

    def say(values: dict[str, Any]) -> None:
        said.write(json.dumps(values) + "\n")
        said.flush()

    with SwarmModelForCausalLM.from_pretrained(
        lesson.folder, initial_peers=lesson.initial_peers, cache=Path(lesson.cache)
    ) as model:
        vocabulary = model.config.get_text_config().vocab_size
        learner = Learner(with_lora(model), lesson.threads)
        learner.step(random_batch(vocabulary, lesson.rows, lesson.length, WARM_UP))
        say({"ready": True})
        for line in asked:
            wanted = json.loads(line)
            for number in range(wanted["first"], wanted["first"] + wanted["steps"]):
                learner.step(random_batch(vocabulary, lesson.rows, lesson.length, number))
            say({"losses": learner.losses[-wanted["steps"] :]})


if __name__ == "__main__":
    serve(Lesson(**json.loads(sys.stdin.readline())), sys.stdin, sys.stdout)
