# SPDX-License-Identifier: Apache-2.0
"""Flags are accepted by their compilers and never override the user's."""

import os
import platform
import subprocess
import sys

import pytest

from covrl.parallel import xla_flags

LOAD_TPU = (
  'from covrl.parallel import topologies;'
  "print(len(topologies.compile_only_devices(topologies.find_topology('v5p-8'))))"
)
# A matrix product with a gathered weight, for the generations named.
COMPILE_TPU = """
import sys

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from covrl.parallel import topologies

for name in sys.argv[1:]:
  devices = topologies.compile_only_devices(topologies.find_topology(name))
  shards = NamedSharding(Mesh(np.array(devices), 'fsdp'), PartitionSpec('fsdp'))
  arguments = [
    jax.ShapeDtypeStruct(shape, jax.numpy.bfloat16, sharding=shards)
    for shape in ((4096, 1024), (1024, 4096))
  ]
  with topologies.no_compilation_cache():
    product = jax.jit(jax.numpy.matmul, out_shardings=shards)
    text = product.lower(*arguments).compile().as_text()
  assert ' all-gather' in text, text
  started = 'all-gather-start' in text or 'async_collective_fusion' in text
  print(name, 'async' if started else 'sync')
"""
LOAD_XLA = 'import jax; print(jax.numpy.ones(4).size)'


def run(program, platform_name, *arguments, **extra):
  """Runs a program in a process with a platform's flags, computing on the CPU."""
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  environment |= {'JAX_PLATFORMS': 'cpu'} | extra
  xla_flags.apply(platform_name, environment)
  return subprocess.run(
    [sys.executable, '-c', program, *arguments],
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


needs_libtpu = pytest.mark.skipif(
  sys.platform != 'linux' or platform.machine() != 'x86_64',
  reason='libtpu, of the dev extra, is for Linux on x86-64 only',
)


@needs_libtpu
def test_libtpu_accepts_its_flags():
  completed = run(LOAD_TPU, 'tpu')
  assert completed.stdout.split() == ['4'], completed.stderr
  # An unknown flag is an error that names it.
  completed = run(LOAD_TPU, 'tpu', LIBTPU_INIT_ARGS='--xla_no_such_flag=true')
  assert completed.returncode
  assert 'xla_no_such_flag' in completed.stderr + completed.stdout


@needs_libtpu
def test_programs_compile_for_every_generation():
  """All-gathers are fused with products only where libtpu supports it."""
  completed = run(COMPILE_TPU, 'tpu', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2')
  assert not completed.returncode, completed.stderr
  values = dict(line.split() for line in completed.stdout.splitlines())
  assert set(values) == {'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2'}
  assert values['v5p:2x2x1'] == values['v6e:2x2'] == 'sync'


def test_xla_accepts_its_flags():
  for name in ('gpu', 'cpu'):
    completed = run(LOAD_XLA, name)
    assert completed.stdout.split() == ['4'], completed.stderr
  completed = run(LOAD_XLA, 'gpu', XLA_FLAGS='--xla_no_such_flag=true')
  assert completed.returncode
  assert 'xla_no_such_flag' in completed.stderr


def test_keeps_flags_set_by_the_user():
  user_flag = '--xla_tpu_enable_data_parallel_all_reduce_opt=false'
  environment = {'LIBTPU_INIT_ARGS': f'{user_flag} --mine=1'}
  xla_flags.apply('tpu', environment)
  flags = environment['LIBTPU_INIT_ARGS'].split()
  assert flags[:2] == [user_flag, '--mine=1']
  names = [flag.split('=')[0] for flag in flags]
  assert len(set(names)) == len(names) == len(xla_flags.TPU) + 1
  applied_twice = dict(environment)
  xla_flags.apply('tpu', applied_twice)
  assert applied_twice == environment


def test_keeps_variables_set_by_the_user():
  environment = {'NCCL_DEBUG': 'INFO', 'XLA_PYTHON_CLIENT_MEM_FRACTION': '.5'}
  xla_flags.apply('gpu', environment)
  assert environment['NCCL_DEBUG'] == 'INFO'
  # JAX refuses to start if both names are set.
  assert 'XLA_CLIENT_MEM_FRACTION' not in environment
  environment = {}
  xla_flags.apply('gpu', environment)
  assert 0.9 <= float(environment['XLA_CLIENT_MEM_FRACTION']) < 1
  assert set(xla_flags.GPU_ENVIRONMENT) < set(environment)
  environment = {}
  xla_flags.apply('cpu', environment)
  assert set(environment) == {'XLA_FLAGS'}


def test_platform_can_be_set_by_jax_platforms(monkeypatch):
  monkeypatch.setenv('JAX_PLATFORMS', 'cpu')
  assert xla_flags.attached_platform() == 'cpu'
