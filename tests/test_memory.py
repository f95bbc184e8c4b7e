"""What a process says that it held at most."""

import subprocess
import sys

CHILD = 'from jaxcnn import memory; held = bytearray(b"x") * (100 << 20); print(memory.peak_bytes()[0])'
PARENT = f"import subprocess, sys; held = bytearray(b'x') * (1200 << 20); subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_the_most_memory_held_is_that_of_the_process_not_of_its_parent():
    done = subprocess.run([sys.executable, '-c', PARENT], capture_output=True, text=True, check=True)
    assert 100 << 20 < int(done.stdout) < 1 << 30
