# SPDX-License-Identifier: Apache-2.0
"""Eight fake CPU devices, shapes checked at run time, compilations kept."""

import ctypes
import gc
import os
import pathlib
import resource
import sys

os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # Most of the time is compiling, of programs that run for milliseconds.
    '--xla_backend_optimization_level=0',
    # Devices that wait for a busy processor are not lost.
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
    # See covrl.parallel.xla_flags, which is not imported before this is set.
    '--xla_cpu_enable_concurrency_optimized_scheduler=false',
  )
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Threads for XLA's CPU client, which else has one per core or device: they wait
# for one another in collectives, and with too few of them wait for ever.
os.environ.setdefault('PJRT_NPROC', '64')

import jax
import pytest
from jaxtyping import install_import_hook

pytest_plugins = ['golden_vectors']

# Run by hand, where Tunix is installed.
collect_ignore = ['examples/grpo_tunix.py']

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update('jax_compilation_cache_dir', str(ROOT / '.jax_cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

# Every shape annotation of these rooms is checked on every call.
install_import_hook(
  [
    'covrl.statistics',
    'covrl.objectives',
    'covrl.entropy',
    'covrl.models',
    'covrl.rollout',
    'covrl.theory',
  ],
  'beartype.beartype',
)


@pytest.fixture
def x64():
  """64-bit floats within one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture(autouse=True, scope='module')
def programs_of_one_module():
  """Drops what a module compiled: that of all of them is 6 GB a worker."""
  yield
  if sys.platform == 'linux':
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    if pages * resource.getpagesize() > 1.5e9:
      jax.clear_caches()
      gc.collect()
      ctypes.CDLL(None).malloc_trim(0)
