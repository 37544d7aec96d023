"""Memory that was freed, in a process of its own, whose C library the test may set."""

import ctypes
import sys

import pytest

from tests.processes import run_command
from tilewise.child_process import child_environment

SCRIPT = """
from tilewise.serving.memory import give_back_large_blocks

assert give_back_large_blocks()

def resident_kib():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))

bytearray(24 << 20)  # where the C library decides by itself, it keeps blocks up to this size from now on
before = resident_kib()
blocks, pins = [], []
for _ in range(24):
    blocks.append(bytearray(b"1" * (4 << 20)))
    pins += [bytes(4000) for _ in range(8)]  # in use above a block, they keep it from the end of the heap
print(resident_kib() - before)
blocks.clear()
print(resident_kib() - before)
"""


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="the C library is not glibc, and is left alone"
)
def test_a_freed_block_goes_back_to_the_system() -> None:
    found = run_command([sys.executable, "-P", "-c", SCRIPT], check=True, env=child_environment())
    held_kib, left_kib = map(int, found.stdout.split())
    assert held_kib > 90 << 10
    assert left_kib < 8 << 10
