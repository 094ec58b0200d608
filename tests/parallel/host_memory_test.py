# SPDX-License-Identifier: Apache-2.0
"""Options of the memory allocator, each in a separate process."""

import os
import platform
import subprocess
import sys

import pytest

# Prints the page faults of the second of two allocations of 64 MiB.
_PROGRAM = """
import resource, threading
from covrl.parallel.host_memory import keep_freed_memory

print(keep_freed_memory())

def fill():
  b'1' * (1 << 26)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  b'1' * (1 << 26)
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

thread = threading.Thread(target=fill)
thread.start()
thread.join()
"""


def run(**variables):
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(('MALLOC_', 'GLIBC_TUNABLES'))
  }
  completed = subprocess.run(
    [sys.executable, '-c', _PROGRAM],
    env=environment | variables,
    capture_output=True,
    text=True,
    check=True,
  )
  is_set, faults = completed.stdout.split()
  return is_set == 'True', int(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='glibc only')
def test_freed_memory_is_used_again():
  is_set, faults = run()
  assert is_set
  assert faults < 100
  # Without the options, a fault for each page.
  is_set, faults = run(MALLOC_CHECK_='0')
  assert not is_set
  assert faults > 10_000
