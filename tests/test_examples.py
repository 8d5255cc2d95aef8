"""The scripts beside the docs run, and what they make is what commands read."""

import json
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def test_questions_about_python_are_rows_for_finetune() -> None:
    command = [sys.executable, "-W", "error", str(EXAMPLES / "python_questions.py")]
    lines = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    rows = [json.loads(line) for line in lines]
    assert all(row.keys() == {"prompt", "completion"} for row in rows)
    assert len({row["completion"] for row in rows}) == len(rows) > 500
    assert "What does Python's `shutil.copytree` do?" in {row["prompt"] for row in rows}
