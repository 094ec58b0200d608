# SPDX-License-Identifier: Apache-2.0
"""The compiler's flags that matter, chosen per platform, in this one place.

They hide latency: chips exchange parts of one layer while they compute another;
on CPUs they keep devices from waiting for one another for ever. None changes a
result. What the environment already says wins, flag by flag. They are read
once, when JAX first looks for devices, so `apply` comes before that; the command
line does it.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, MutableMapping
from typing import Literal

Platform = Literal['tpu', 'gpu', 'cpu']

# libtpu's own, by LIBTPU_INIT_ARGS.
TPU: Mapping[str, str] = {
  # All-gathers of parameters run beside matrix products, over several of them.
  'xla_tpu_enable_async_collective_fusion': 'true',
  'xla_tpu_enable_async_collective_fusion_fuse_all_gather': 'true',
  'xla_tpu_enable_async_collective_fusion_multiple_steps': 'true',
  'xla_tpu_overlap_compute_collective_tc': 'true',
  'xla_enable_async_all_gather': 'true',
  # Sums over replicas, and so over slices, wait for the end of a step and run
  # beside the optimiser, whatever their sizes.
  'xla_tpu_enable_data_parallel_all_reduce_opt': 'true',
  'xla_tpu_data_parallel_opt_different_sized_ops': 'true',
}

# XLA's, by XLA_FLAGS.
GPU: Mapping[str, str] = {
  # Collectives begin as early, and are waited for as late, as they can be.
  'xla_gpu_enable_latency_hiding_scheduler': 'true',
  # Loops over layers fetch the next layer's parameters during this one.
  'xla_gpu_enable_while_loop_double_buffering': 'true',
  'xla_gpu_enable_pipelined_all_gather': 'true',
  'xla_gpu_enable_pipelined_reduce_scatter': 'true',
}

# XLA's, by XLA_FLAGS.
CPU: Mapping[str, str] = {
  # With it, devices may begin collectives that do not depend on one another each
  # in its own order, and so wait for ever or take one's bytes for another's.
  'xla_cpu_enable_concurrency_optimized_scheduler': 'false',
}

_FLAGS: Mapping[Platform, tuple[str, Mapping[str, str]]] = {
  'tpu': ('LIBTPU_INIT_ARGS', TPU),
  'gpu': ('XLA_FLAGS', GPU),
  'cpu': ('XLA_FLAGS', CPU),
}


def attached() -> Platform:
  """What this machine computes with, by its devices; JAX is not asked."""
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
  """Adds a platform's flags to those that the environment has.

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
