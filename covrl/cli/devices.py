# SPDX-License-Identifier: Apache-2.0
"""XLA flags and the compilation cache of a command."""

from __future__ import annotations

import os
import pathlib
from typing import Literal

from covrl.parallel import xla_flags


def set_xla_flags() -> None:
  """Sets the XLA flags of the attached devices, before JAX reads them."""
  attached = xla_flags.attached()
  xla_flags.apply(attached)
  if attached != 'tpu':
    _silence_libtpu()


def set_compiler_flags(platform: Literal['tpu', 'gpu']) -> None:
  """Sets the XLA flags to compile for devices that are not attached."""
  import jax

  xla_flags.apply(platform)
  if platform == 'tpu':
    _silence_libtpu()
  jax.config.update('jax_platforms', 'cpu')


def use_compilation_cache() -> None:
  """Keeps compiled programs on disk for the next command.

  Programs for several CPU devices are not kept: when XLA reads one back,
  collectives in different loops have lost their order, also with the flags of
  `covrl.parallel.xla_flags`.
  """
  import jax

  if xla_flags.attached() == 'cpu' and jax.device_count() > 1:
    jax.config.update('jax_enable_compilation_cache', False)
  elif 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    cache = pathlib.Path.home() / '.cache' / 'covrl' / 'xla'
    jax.config.update('jax_compilation_cache_dir', str(cache))


def _silence_libtpu() -> None:
  """Keeps libtpu, installed as a compiler, from looking for a TPU machine."""
  for name, value in (
    ('TPU_SKIP_MDS_QUERY', '1'),
    ('TPU_WORKER_HOSTNAMES', 'localhost'),
    ('TPU_ACCELERATOR_TYPE', 'v5p-8'),
  ):
    os.environ.setdefault(name, value)
