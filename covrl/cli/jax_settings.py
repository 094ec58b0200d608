# SPDX-License-Identifier: Apache-2.0
"""Settings of JAX for a command: XLA flags, memory and compilation cache."""

from __future__ import annotations

import math
import os
import pathlib
import sys
import tempfile
from typing import Literal

from covrl.parallel import host_memory, xla_flags
from covrl.parallel.settings import check_settings


def prepare_to_run(*, trains: bool = False) -> None:
  """Sets XLA flags and, on CPUs, the memory allocator, before JAX has threads.

  Args:
    trains: whether the command trains.

  Raises:
    ValueError: a setting of JAX has a value with which the programs would fail.
  """
  check_settings(trains=trains)
  set_xla_flags()
  if xla_flags.attached_platform() == 'cpu':
    host_memory.keep_freed_memory()


def set_xla_flags() -> None:
  """Sets the XLA flags of the attached devices, before JAX reads them."""
  platform = xla_flags.attached_platform()
  xla_flags.apply(platform)
  if platform != 'tpu':
    _silence_libtpu()


def set_compiler_flags(platform: Literal['tpu', 'gpu']) -> None:
  """Sets the XLA flags to compile for devices that are not attached.

  Raises:
    ValueError: a setting of JAX is not allowed, see `check_settings`.
  """
  import jax

  check_settings()
  xla_flags.apply(platform)
  if platform == 'tpu':
    _silence_libtpu()
  jax.config.update('jax_platforms', 'cpu')


def use_compilation_cache() -> None:
  """Keeps compiled programs on disk for the next command.

  Programs for several CPU devices are not kept: when XLA reads one back,
  collectives in different loops have lost their order, also with the flags of
  `covrl.parallel.xla_flags`.

  The directory is `JAX_COMPILATION_CACHE_DIR`, by default one in the home
  directory. If nothing can be written there, a warning is printed, and the
  programs in it are still read.

  Raises:
    RuntimeError: JAX has no devices, such as those that `JAX_PLATFORMS` names.
  """
  import jax

  if _device_count() > 1 and xla_flags.attached_platform() == 'cpu':
    jax.config.update('jax_enable_compilation_cache', False)
    return
  directory = os.environ.get('JAX_COMPILATION_CACHE_DIR')
  if directory is None:
    try:
      home = pathlib.Path.home()
    except RuntimeError:
      _warn('compiled programs are not kept: there is no home directory')
      jax.config.update('jax_enable_compilation_cache', False)
      return
    directory = str(home / '.cache' / 'covrl' / 'xla')
    jax.config.update('jax_compilation_cache_dir', directory)
  if not directory or '://' in directory:
    return
  path = pathlib.Path(directory)
  if cause := _write_failure(path):
    _warn(f'compiled programs are not kept: {directory} {cause}')
    # JAX would warn of every program.
    jax.config.update('jax_persistent_cache_min_compile_time_secs', math.inf)
    if not path.is_dir():
      jax.config.update('jax_enable_compilation_cache', False)


def _device_count() -> int:
  """Returns the number of devices, and initialises them.

  Raises:
    RuntimeError: JAX cannot find its devices.
  """
  import jax

  try:
    return jax.device_count()
  except (RuntimeError, AssertionError) as error:
    # JAX asserts that one of the platforms in JAX_PLATFORMS has devices.
    cause = str(error).partition('\n')[0] or (
      f'none, with JAX_PLATFORMS={os.environ.get("JAX_PLATFORMS", "")}'
    )
    raise RuntimeError(f'JAX must find its devices, got: {cause}') from error


def _write_failure(directory: pathlib.Path) -> str:
  """Returns the reason that a directory is unwritable; empty if it is writable."""
  from covrl.storage import StorageError, writing

  try:
    with writing(directory):
      directory.mkdir(parents=True, exist_ok=True)
      with tempfile.TemporaryFile(dir=directory) as file:
        file.write(bytes(4096))
  except StorageError as error:
    return str(error).removeprefix(f'{directory} ')
  return ''


def _warn(text: str) -> None:
  """Prints a warning on standard error."""
  print(f'covrl: {text}', file=sys.stderr)


def _silence_libtpu() -> None:
  """Keeps libtpu, installed as a compiler, from looking for a TPU machine."""
  for name, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
  ):
    os.environ.setdefault(name, value)
