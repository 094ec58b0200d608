# SPDX-License-Identifier: Apache-2.0
"""XLA and libtpu flags per platform.

On TPU and GPU they overlap communication with computation; on CPU they prevent
deadlocks between fake devices. None changes a result. A flag that the
environment already sets is kept. The flags are read once, when JAX initialises
its backend, so the command line calls `apply` before that.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, MutableMapping
from typing import Literal

Platform = Literal['tpu', 'gpu', 'cpu']

# Flags of libtpu, in LIBTPU_INIT_ARGS, the same for v5e, v5p and v6e. Fusing
# all-gathers with matrix products is not among them: libtpu does so on v5e by
# itself and calls it unsafe on others, for which libtpu 0.0.50 compiles nothing
# under `xla_tpu_enable_async_collective_fusion_fuse_all_gather=true`.
TPU: Mapping[str, str] = {
  # Sums over replicas, and so over slices, wait for the end of a step and run
  # beside the optimiser, whatever their sizes.
  'xla_tpu_enable_data_parallel_all_reduce_opt': 'true',
  'xla_tpu_data_parallel_opt_different_sized_ops': 'true',
}

# Flags of XLA, in XLA_FLAGS.
GPU: Mapping[str, str] = {
  # Collectives start as early and end as late as possible.
  'xla_gpu_enable_latency_hiding_scheduler': 'true',
  # Loops over layers gather the next layer's parameters during this one.
  'xla_gpu_enable_while_loop_double_buffering': 'true',
  'xla_gpu_enable_pipelined_all_gather': 'true',
  'xla_gpu_enable_pipelined_reduce_scatter': 'true',
}

# Flags of XLA, in XLA_FLAGS.
CPU: Mapping[str, str] = {
  # The concurrent scheduler may start independent collectives in a different
  # order on each device, which deadlocks or mixes up their data.
  'xla_cpu_enable_concurrency_optimized_scheduler': 'false',
}

_FLAGS: Mapping[Platform, tuple[str, Mapping[str, str]]] = {
  'tpu': ('LIBTPU_INIT_ARGS', TPU),
  'gpu': ('XLA_FLAGS', GPU),
  'cpu': ('XLA_FLAGS', CPU),
}


def attached() -> Platform:
  """Returns the platform of the attached devices without initialising JAX."""
  chosen = os.environ.get('JAX_PLATFORMS', '')
  devices = pathlib.Path('/dev')
  if chosen.startswith('cpu'):
    return 'cpu'
  if any(devices.glob('accel*')) or any(devices.glob('vfio/[0-9]*')):
    return 'tpu'
  return 'gpu' if any(devices.glob('nvidia[0-9]*')) else 'cpu'


def apply(
  platform: Platform, environment: MutableMapping[str, str] = os.environ
) -> None:
  """Adds a platform's flags to those set in the environment.

  >>> environment = {'XLA_FLAGS': '--xla_gpu_enable_pipelined_all_gather=false'}
  >>> apply('gpu', environment)
  >>> environment['XLA_FLAGS'].count('pipelined_all_gather')
  1
  """
  variable, flags = _FLAGS[platform]
  given = environment.get(variable, '').split()
  names = {flag.lstrip('-').split('=')[0] for flag in given}
  given += [
    f'--{name}={value}' for name, value in flags.items() if name not in names
  ]
  environment[variable] = ' '.join(given)
