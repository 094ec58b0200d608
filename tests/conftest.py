# SPDX-License-Identifier: Apache-2.0
"""Test session: eight fake CPU devices, run-time shape checks, a compile cache."""

import ctypes
import gc
import importlib
import os
import pathlib
import resource
import sys

from fast_compilation import FLAGS

os.environ['XLA_FLAGS'] = ' '.join(
  (
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=8',
    # Most of the time goes to compiling programs that run for milliseconds.
    FLAGS,
    # Tolerates devices that wait long for a busy processor.
    '--xla_cpu_collective_call_terminate_timeout_seconds=600',
    # See covrl.parallel.xla_flags, which is not imported before this is set.
    '--xla_cpu_enable_concurrency_optimized_scheduler=false',
  )
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# Threads of XLA's CPU client, by default one per core or device: they wait for
# one another in collectives and deadlock if there are too few.
os.environ.setdefault('PJRT_NPROC', '64')

import jax
import jaxtyping
import pytest
from jaxtyping import install_import_hook

pytest_plugins = ['golden_vectors']

# Not searched for doctests: the first needs Tunix, in an environment of its own,
# and is run by hand; the second trains when it is imported.
collect_ignore = ['examples/grpo_tunix.py', 'examples/tutorial.py']

ROOT = pathlib.Path(__file__).parents[1]

jax.config.update('jax_compilation_cache_dir', str(ROOT / '.jax_cache'))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)

# Shape annotations of these packages are checked on every call.
CHECKED = (
  'covrl.statistics',
  'covrl.objectives',
  'covrl.entropy',
  'covrl.models',
  'covrl.rollout',
  'covrl.theory',
)
install_import_hook(CHECKED, 'shape_checks.check')
# Otherwise pytest imports a module with doctests a second time, whose classes are
# not those that its annotations name.
for package in CHECKED:
  importlib.import_module(package)


# Directories with the longest files, which run first so that workers end together.
LONGEST = ('tests/train', 'tests/compile', 'tests/run', 'tests/pretrained')


def pytest_collection_modifyitems(items):
  """Puts the longest files first; `--dist loadfile` keeps each on one worker."""
  items.sort(
    key=lambda item: not str(item.path.relative_to(ROOT)).startswith(LONGEST)
  )


@pytest.fixture
def x64():
  """Enables 64-bit floats for one test."""
  with jax.enable_x64(True):
    yield


@pytest.fixture
def no_annotation_checks():
  """Switches off the run-time checks of annotations for one test."""
  jaxtyping.config.update('jaxtyping_disable', True)
  yield
  jaxtyping.config.update('jaxtyping_disable', False)


@pytest.fixture(autouse=True)
def restore_signal_handlers():
  """Restores the handlers that a stopped run keeps until its process ends."""
  yield
  preemption = sys.modules.get('covrl.run.preemption')
  if preemption is not None:
    preemption.restore_handlers()


@pytest.fixture(autouse=True, scope='module')
def drop_compiled_programs():
  """Drops a module's compiled programs; those of all modules take 6 GB."""
  yield
  if sys.platform == 'linux':
    pages = int(pathlib.Path('/proc/self/statm').read_text().split()[1])
    if pages * resource.getpagesize() > 1.5e9:
      jax.clear_caches()
      gc.collect()
      ctypes.CDLL(None).malloc_trim(0)
