import subprocess
import sys

from swarm.bystanders import Bystanders, own_seconds

BUSY = """
import time
while time.process_time() < 0.5: pass
print(flush=True)
input()
"""


def test_work_of_children_is_our_own() -> None:
    before = own_seconds()
    pipe = subprocess.PIPE
    with Bystanders() as bystanders, subprocess.Popen([sys.executable, "-c", BUSY], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert own_seconds() >= before + 0.4  # the system counts in hundredths
        child.communicate(b"\n")
    assert bystanders.cores >= 0


def test_work_of_others_is_told_in_words() -> None:
    bystanders = Bystanders()
    assert str(bystanders) == "nothing else ran on this machine meanwhile"
    bystanders.cores = 1.25
    assert "other work took 1.2 of" in str(bystanders)
