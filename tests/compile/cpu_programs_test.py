# SPDX-License-Identifier: Apache-2.0
"""All programs of a recipe, compiled by XLA's CPU compiler for eight devices."""

import functools
import pathlib

import jax
import pytest
from fast_compilation import QUICK

from covrl import config
from covrl.compile import accuracy, compile_recipe, compiling
from covrl.compile.hlo import parse
from covrl.parallel import topologies

RECIPE = pathlib.Path(__file__).parent / 'recipes' / 'small.py'
CHANGES = [
  '--config.mesh.data=1',
  '--config.mesh.fsdp=8',
  '--config.mesh.tensor=1',
  '--config.rollout.prompts_per_iteration=64',
  '--config.train.micro_batches=1',
]
VOCABULARY, PARAMETERS = 4096, 8_653_312
# In the order in which they are compiled.
COMPILED = ('train_step', 'score', 'start', 'place', 'run')


@pytest.fixture(scope='module')
def small():
  """Returns the report of all programs and their parsed HLO."""
  modules = []

  def remember(text, platform):
    modules.append(parse(text, platform))
    return modules[-1]

  compile_fast = functools.partialmethod(
    jax.stages.Lowered.compile, compiler_options=QUICK
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compiling, 'parse', remember)
    patch.setattr(jax.stages.Lowered, 'compile', compile_fast)
    report = compile_recipe(
      config.load(str(RECIPE), CHANGES),
      topologies.find_topology('h100:8'),
      devices=jax.devices(),
    )
  return report, dict(zip(COMPILED, modules, strict=True))


def arrays_in(module):
  for computation in module.computations.values():
    for each in computation.instructions.values():
      for shape in each.shapes:
        yield each, shape


def test_no_array_has_logits_of_all_tokens(small):
  """Neither [batch, length, vocabulary] nor a reshaped one, whole or sharded."""
  _, modules = small
  # On each device: two rows of an update, of which responses have statistics.
  # Those of eight prompts of 128 tokens would be more.
  logits = 2 * 384 * VOCABULARY
  for name, module in modules.items():
    for each, shape in arrays_in(module):
      assert shape.elements < logits, (name, each.name, shape)


def test_sampling_sorts_nothing(small):
  _, modules = small
  for name in ('start', 'run'):
    opcodes = {each.opcode for each, _ in arrays_in(modules[name])}
    assert not opcodes & {'sort', 'topk'}


def test_state_is_donated(small):
  """Arguments by hand, and no second copy of the state."""
  report, _ = small
  memory = report.programs['train_step'].memory
  assert memory is not None
  state = 3 * 4 * PARAMETERS / 8
  ratio = memory.arguments / state
  assert accuracy.STATE.least <= round(ratio, 2) <= accuracy.STATE.most
  assert memory.outputs < 1e-3 * state


def test_report_compares_estimates_with_measurements(small):
  report, _ = small
  text = '\n'.join(report.lines())
  assert 'estimates against measurements, on CPUs only:\n' in text
  for each in accuracy.COMPARISONS:
    assert f'{each.estimate}: {each.ratios} of {each.reference}\n' in text
  assert (
    'H100 80GB HBM3: nothing was run, and neither time nor memory compared'
  ) in text
  described = report.as_json()['estimates_against_measurements_on_cpus']
  assert described == [each._asdict() for each in accuracy.COMPARISONS]
