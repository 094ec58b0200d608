# SPDX-License-Identifier: Apache-2.0
"""XLA and libtpu flags per platform, and environment variables for GPUs.

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

from covrl.parallel.gpus import MEMORY_SHARE

Platform = Literal['tpu', 'gpu', 'cpu']

# Flags of libtpu, in LIBTPU_INIT_ARGS, the same for v5e, v5p and v6e. Fusing
# all-gathers with matrix products is not among them: libtpu does so on v5e by
# default and reports it as unsafe on others, for which libtpu 0.0.50 compiles
# nothing with `xla_tpu_enable_async_collective_fusion_fuse_all_gather=true`.
TPU: Mapping[str, str] = {
  # Sums over replicas, and so over slices, wait for the end of a step and run
  # beside the optimiser, whatever their sizes.
  'xla_tpu_enable_data_parallel_all_reduce_opt': 'true',
  'xla_tpu_data_parallel_opt_different_sized_ops': 'true',
}

# Flags of XLA, in XLA_FLAGS. Two kinds are not among them, since two micro-batches
# are then in memory at once (temporaries of Qwen2.5-0.5B on eight H100, 9.0 GiB
# without both): `xla_gpu_enable_while_loop_double_buffering`, which unrolls every
# loop by two (17.6 GiB), and pipelined collectives, which take the last trip out of
# loops (`xla_gpu_enable_pipelined_all_gather` alone: 14.8 GiB). Where that fits,
# XLA_FLAGS=--xla_gpu_enable_pipelined_all_gather=true gathers a layer's parameters
# during the layer before, which is worth most between hosts.
GPU: Mapping[str, str] = {
  # Collectives start as early and end as late as possible.
  'xla_gpu_enable_latency_hiding_scheduler': 'true',
  # Kernels between collectives are launched as one CUDA graph: a decoding step
  # is hundreds of short ones. Collectives and loops are launched one by one.
  'xla_gpu_enable_command_buffer': 'FUSION,CUBLAS,CUBLASLT,CUDNN',
}
# Environment variables of CUDA and NCCL, which launchers set, too.
NCCL_ENVIRONMENT: Mapping[str, str] = {
  # Kernels reach a GPU in the order in which they are launched, so that a
  # collective starts before the products that it overlaps.
  'CUDA_DEVICE_MAX_CONNECTIONS': '1',
  # NCCL reports why a connection failed.
  'NCCL_DEBUG': 'WARN',
}
GPU_ENVIRONMENT: Mapping[str, str] = {
  # Share of the memory that JAX reserves, instead of 75 %.
  'XLA_CLIENT_MEM_FRACTION': str(MEMORY_SHARE),
  **NCCL_ENVIRONMENT,
}
# The older name of a variable; JAX refuses both at once.
_OLDER_NAMES = {'XLA_CLIENT_MEM_FRACTION': 'XLA_PYTHON_CLIENT_MEM_FRACTION'}

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


def attached_platform() -> Platform:
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
  """Adds a platform's flags and variables to those set in the environment.

  >>> flag = 'xla_gpu_enable_latency_hiding_scheduler'
  >>> environment = {'XLA_FLAGS': f'--{flag}=false'}
  >>> apply('gpu', environment)
  >>> environment['XLA_FLAGS'].count(flag)
  1
  """
  variable, flags = _FLAGS[platform]
  all_flags = environment.get(variable, '').split()
  names = {flag.lstrip('-').split('=')[0] for flag in all_flags}
  all_flags += [
    f'--{name}={value}' for name, value in flags.items() if name not in names
  ]
  environment[variable] = ' '.join(all_flags)
  if platform == 'gpu':
    for name, value in GPU_ENVIRONMENT.items():
      if _OLDER_NAMES.get(name, name) not in environment:
        environment.setdefault(name, value)


def user_flags(environment: Mapping[str, str] = os.environ) -> str:
  """Returns the flags that a user has set and that may change results, sorted.

  Those that `apply` adds, the number of fake devices and dumps do not.

  >>> user_flags({'XLA_FLAGS': '--xla_dump_to=a --xla_cpu_enable_fast_math=true'})
  '--xla_cpu_enable_fast_math=true'
  """
  default_flags = {name for _, flags in _FLAGS.values() for name in flags}
  flags = {
    flag
    for variable in {variable for variable, _ in _FLAGS.values()}
    for flag in environment.get(variable, '').split()
    if not flag.lstrip('-').startswith(('xla_dump', 'xla_force_host'))
    and flag.lstrip('-').partition('=')[0] not in default_flags
  }
  return ' '.join(sorted(flags))
