# SPDX-License-Identifier: Apache-2.0
"""Settings of the C library's memory allocator for programs on CPUs."""

from __future__ import annotations

import ctypes
import os
import sys

# Options of `mallopt`, from malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
# Environment variables that set the same options.
_VARIABLES = ('MALLOC_', 'GLIBC_TUNABLES')


def keep_freed_memory() -> bool:
  """Keeps memory that this process frees, for its next allocations.

  XLA allocates the temporaries of a program at every call. glibc gives an
  allocation of more than 32 MiB back to the kernel when it is freed, which then
  clears the pages of the next one. With these options the process keeps the most
  memory that it has used at a time. To be called before there are threads.

  Returns:
    Whether the options are set: they are not with another C library, or if the
    environment sets options of the allocator.
  """
  if sys.platform != 'linux' or any(
    name.startswith(_VARIABLES) for name in os.environ
  ):
    return False
  set_option = getattr(ctypes.CDLL(None), 'mallopt', None)
  if set_option is None:
    return False
  # No trimming, no mappings beside the heap, and one heap for all threads.
  options = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_ARENA_MAX, 1))
  return all(set_option(option, value) for option, value in options)
