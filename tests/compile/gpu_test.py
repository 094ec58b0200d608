# SPDX-License-Identifier: Apache-2.0
"""An update and a prefill compiled by XLA's GPU compiler, for absent GPUs.

In a process of its own: a process that has loaded the compiler's plugin uses it
in every later computation.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

from covrl.compile.compiling import check_products
from covrl.compile.hlo import parse
from covrl.parallel import gpus
from covrl.parallel.gpus import find_gpus

ROOT = pathlib.Path(__file__).parents[2]
RECIPE = pathlib.Path(__file__).parent / 'recipes' / 'small.py'


def missing_compiler():
  """Reason why nothing can be compiled for GPUs here; `None` if it can."""
  try:
    gpus.check_compiler(gpus._installed())
  except ValueError as error:
    return str(error)
  return None


@pytest.fixture(scope='module')
def compiled(tmp_path_factory):
  """Returns the programs of the report, and the directory of their HLO."""
  reason = missing_compiler()
  if reason:
    pytest.skip(reason)
  hlo = tmp_path_factory.mktemp('hlo')
  arguments = [
    f'--config={RECIPE}',
    '--topology=h100:4',
    '--programs=train_step,prefill',
    '--config.mesh.data=1',
    '--config.mesh.fsdp=4',
    '--config.mesh.tensor=1',
    '--config.rollout.prompts_per_iteration=32',
    '--config.train.micro_batches=1',
    '--json',
  ]
  path = os.pathsep.join([str(ROOT / 'tests'), str(ROOT)])
  completed = subprocess.run(
    [sys.executable, '-m', 'covrl.cli', 'compile', *arguments],
    env={
      **os.environ,
      'JAX_PLATFORMS': 'cpu',
      'PYTHONPATH': path,
      'XLA_FLAGS': f'--xla_dump_to={hlo} --xla_dump_hlo_as_text '
      '--xla_dump_hlo_module_re=jit_(update|_start_state)',
    },
    capture_output=True,
    text=True,
    check=False,
    timeout=600,
  )
  assert completed.returncode == 0, completed.stderr
  return json.loads(completed.stdout)['programs'], hlo


@pytest.fixture
def report(compiled):
  """Returns the report on the update."""
  programs, _ = compiled
  return programs['train_step']


def parse_optimised(hlo, name):
  """Parses the compiled program of a jitted function."""
  (file,) = hlo.glob(f'*.jit_{name}.*gpu_after_optimizations.txt')
  return parse(file.read_text(), 'gpu')


@pytest.mark.parametrize('name', ['update', '_start_state'])
def test_no_array_has_logits_of_all_tokens(compiled, name):
  _, hlo = compiled
  # On each GPU: four rows of an update, of which 384 tokens have statistics.
  # Those of eight prompts of 128 tokens would be fewer, but more than the
  # largest array of a prefill, the unembedding.
  num_logits = {'update': 4 * 384 * 4096, '_start_state': 8 * 128 * 4096}[name]
  for computation in parse_optimised(hlo, name).computations.values():
    for instruction in computation.instructions.values():
      for shape in instruction.shapes:
        assert shape.elements < num_logits, (instruction.name, shape)


def test_backward_computes_layers_again(compiled):
  """`remat='cheap'` keeps products and computes other values again."""
  _, hlo = compiled
  recomputed = [
    instruction
    for computation in parse_optimised(hlo, 'update').computations.values()
    for instruction in computation.instructions.values()
    if 'rematted_computation' in instruction.scope
  ]
  assert recomputed
  assert not any(instruction.opcode == 'dot' for instruction in recomputed)


def test_gradients_are_reduced_by_reduce_scatter_over_nvlink(report):
  sent_bytes = {}
  for collective in report['collectives']:
    assert collective['network'] == 'nvlink'
    sent_bytes[collective['kind']] = (
      sent_bytes.get(collective['kind'], 0) + collective['bytes']
    )
  assert sent_bytes['all-reduce'] < 0.1 * sent_bytes['reduce-scatter']


def test_attention_is_cudnns_and_products_are_of_bfloat16(report):
  flops_by_type = {}
  for product in report['products']:
    flops_by_type[product['type']] = (
      flops_by_type.get(product['type'], 0) + product['flops']
    )
  assert flops_by_type['bf16'] > 0.99 * sum(flops_by_type.values())
  assert 'cuDNN attention' in {
    product['kernel'] for product in report['products']
  }
  assert report['uncounted_kernels'] == []


def test_operations_and_memory_are_near_those_of_the_model(report):
  # The excess is that of logits and of recomputation in the backward pass.
  assert 1 < report['flops'] / report['model_flops'] < 1.15
  assert report['fits'] is True
  # Parameters and two moments, in float32 over four GPUs: donated, so that no
  # second copy is in memory.
  state_bytes = 3 * 4 * 8_653_312 / 4
  assert report['hbm']['arguments'] == pytest.approx(state_bytes, rel=0.05)
  assert report['hbm']['outputs'] < 0.01 * state_bytes
  # Gradients, gathered parameters, and activations of four rows.
  assert report['hbm']['temporaries'] < state_bytes + 80e6


def test_products_that_a_gpu_lacks_are_refused():
  lowered = (
    '%1 = stablehlo.dot_general %a, %b, contracting_dims = [1] x [0] : '
    '(tensor<8x8xf8E4M3FN>, tensor<8x8xf8E4M3FN>) -> tensor<8x8xf32>'
  )
  with pytest.raises(
    ValueError, match=re.escape('a100 has none of 8-bit floats, got f8E4M3FN')
  ):
    check_products(lowered, find_gpus('a100:8').chip)
  check_products(lowered.replace('f8E4M3FN', 'bf16'), find_gpus('a100:8').chip)
