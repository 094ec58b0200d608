# SPDX-License-Identifier: Apache-2.0
"""Estimated memory of programs against the peak of a process that runs them.

The process executes this file on one CPU device, with ones for arguments.
"""

import ctypes
import gc
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from covrl import config
from covrl.compile import accuracy, compile_recipe
from covrl.parallel import topologies

TESTS = pathlib.Path(__file__).parents[1]
RECIPE = pathlib.Path(__file__).parent / 'recipes' / 'small.py'
OVERRIDES = [
  '--config.mesh.data=1',
  '--config.mesh.fsdp=1',
  '--config.mesh.tensor=1',
  '--config.rollout.max_prompt_length=16',
  '--config.rollout.max_response_length=112',
]


def resident_bytes(name):
  """Resident bytes of the process: `'VmRSS'` now, `'VmHWM'` at the peak."""
  for line in pathlib.Path('/proc/self/status').read_text().splitlines():
    if line.startswith(f'{name}:'):
      return int(line.split()[1]) * 1024
  raise ValueError(f'/proc/self/status must have {name}')


def ones_like(like):
  """An array of ones, or a PRNG key, of a shape and dtype."""
  if jnp.issubdtype(like.dtype, jax.dtypes.prng_key):
    return jax.random.key(0)
  return jnp.asarray(np.ones(like.shape, like.dtype))


def main(name):
  """Prints the estimated and the measured bytes, without the arguments."""
  programs = []
  compile_lowered = jax.stages.Lowered.compile

  def record(lowered):
    programs.append(compile_lowered(lowered))
    return programs[-1]

  pytest.MonkeyPatch().setattr(jax.stages.Lowered, 'compile', record)
  report = compile_recipe(
    config.load(str(RECIPE), OVERRIDES),
    topologies.find_topology('h100:1'),
    names=[name],
    devices=jax.devices(),
  )
  memory = report.programs[name].memory
  assert memory is not None
  (program,) = programs
  arguments, _ = jax.tree.map(ones_like, program.args_info)
  jax.block_until_ready(arguments)
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  before = resident_bytes('VmRSS')
  pathlib.Path('/proc/self/clear_refs').write_text('5')  # Resets VmHWM.
  jax.block_until_ready(program(*arguments))
  measured = resident_bytes('VmHWM') - before
  print(json.dumps([memory.temporaries + memory.outputs, measured]))


@pytest.mark.skipif(
  sys.platform != 'linux' or not os.access('/proc/self/clear_refs', os.W_OK),
  reason='the peak of a process is measured on Linux',
)
@pytest.mark.slow
@pytest.mark.parametrize('name', ['train_step', 'score'])
def test_memory_estimates_are_within_the_stated_range_of_measurements(name):
  path = os.pathsep.join([str(TESTS), str(TESTS.parent)])
  completed = subprocess.run(
    [sys.executable, __file__, name],
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PJRT_NPROC': '1',  # Each thread allocates in an arena of its own.
      'PYTHONPATH': path,
      'XLA_FLAGS': '--xla_backend_optimization_level=0',
    },
    capture_output=True,
    text=True,
    check=False,
    timeout=600,
  )
  assert completed.returncode == 0, completed.stderr
  estimate, measured = json.loads(completed.stdout.splitlines()[-1])
  least, most = accuracy.MEMORY.least, accuracy.MEMORY.most
  assert least <= estimate / measured <= most


if __name__ == '__main__':
  main(sys.argv[1])
