"""A child ends with its parent, whatever it is doing then."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import os, signal, sys, time
from re4.serving.host.parent_death import end_with_parent
end_with_parent(int(sys.argv[1]) or os.getppid(), within_s=eval(sys.argv[2]))
print(os.getpid(), flush=True)
if sys.argv[3] == "stopped":
    os.kill(os.getpid(), signal.SIGSTOP)
time.sleep(1e6)
"""
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}, *sys.argv[1:]], stdin=subprocess.PIPE)
child.wait()
print("the child ended first")
"""


@pytest.mark.parametrize("state", ["stopped", "stuck"])
@pytest.mark.parametrize("within_s", [None, 0.01])
def test_a_child_ends_with_a_killed_parent(state: str, within_s: float | None) -> None:
    words = [sys.executable, "-c", PARENT, "0", str(within_s), state]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        while state == "stopped" and _state(child) != "T":
            pass
        parent.kill()
        parent.wait()
        assert parent.stdout.read() == b""  # both held it


def test_a_child_whose_parent_ended_before_ends_at_once() -> None:
    words = [sys.executable, "-c", CHILD, str(os.getppid()), "60", "stuck"]
    assert subprocess.run(words, check=False).returncode == 1


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
