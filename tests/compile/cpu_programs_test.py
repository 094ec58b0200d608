# SPDX-License-Identifier: Apache-2.0
"""All programs of a recipe, compiled by XLA's CPU compiler for eight devices."""

import functools
import pathlib

import jax
import pytest
from fast_compilation import QUICK

from covrl import config
from covrl.compile import accuracy, compile_recipe, compiling, model_cost
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
# Names of the programs, in the order in which they are compiled. Of the sampler's,
# `start` processes the prompts, `place` moves parameters to its mesh, and `run`
# decodes a segment of tokens.
PROGRAMS = ('train_step', 'score', 'start', 'place', 'run')


def compiled(changes, **settings):
  """Returns a report and the parsed HLO of its programs, in order."""
  modules = []

  def record(text, platform):
    modules.append(parse(text, platform))
    return modules[-1]

  compile_fast = functools.partialmethod(
    jax.stages.Lowered.compile, compiler_options=QUICK
  )
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compiling, 'parse', record)
    patch.setattr(jax.stages.Lowered, 'compile', compile_fast)
    report = compile_recipe(
      config.load(str(RECIPE), changes),
      topologies.find_topology('h100:8'),
      devices=jax.devices(),
      **settings,
    )
  return report, modules


@pytest.fixture(scope='module')
def small():
  """Returns the report of all programs and their parsed HLO."""
  report, modules = compiled(CHANGES)
  return report, dict(zip(PROGRAMS, modules, strict=True))


def arrays_in(module):
  """Yields each instruction with each array that it produces."""
  for computation in module.computations.values():
    for instruction in computation.instructions.values():
      for shape in instruction.shapes:
        yield instruction, shape


def test_no_array_has_logits_of_all_tokens(small):
  """No array has as many elements as [batch, length, vocabulary] on a device."""
  _, modules = small
  # An update has two rows of 384 response tokens on each device. The prompts of
  # a prefill, eight of 128 tokens, would have more.
  num_logits = 2 * 384 * VOCABULARY
  for name, module in modules.items():
    for instruction, shape in arrays_in(module):
      assert shape.elements < num_logits, (name, instruction.name, shape)


def test_sampling_sorts_nothing(small):
  _, modules = small
  for name in ('start', 'run'):
    opcodes = {
      instruction.opcode for instruction, _ in arrays_in(modules[name])
    }
    assert not opcodes & {'sort', 'topk'}


def test_state_is_donated(small):
  """The arguments are a state's bytes, and the outputs do not copy the state."""
  report, _ = small
  memory = report.programs['train_step'].memory
  assert memory is not None
  state_bytes = 3 * 4 * PARAMETERS / 8
  ratio = memory.arguments / state_bytes
  assert accuracy.STATE.least <= round(ratio, 2) <= accuracy.STATE.most
  assert memory.outputs < 1e-3 * state_bytes


def test_report_compares_estimates_with_measurements(small):
  report, _ = small
  text = '\n'.join(report.lines())
  assert 'estimates against measurements, on CPUs only:\n' in text
  for comparison in accuracy.COMPARISONS:
    assert (
      f'{comparison.estimate}: {comparison.ratios} of {comparison.reference}\n'
      in text
    )
  assert (
    'H100 80GB HBM3: nothing was run, and neither time nor memory compared'
  ) in text
  described = report.as_json()['estimates_against_measurements_on_cpus']
  assert described == [
    comparison._asdict() for comparison in accuracy.COMPARISONS
  ]


def test_admission_by_slots_reports_the_programs_that_the_run_calls():
  """The report is of the programs that the run calls, not of whole draws."""
  report, modules = compiled(
    [
      *CHANGES,
      '--config.rollout.admission=slots',
      '--config.rollout.max_draws=3',
      '--config.rollout.slots=64',
    ],
    names=('prefill', 'decode'),
  )
  shapes = {
    shape.dims
    for instruction in modules[-1].entry.instructions.values()
    if instruction.opcode == 'parameter'
    for shape in instruction.shapes
    if len(shape.dims) == 5
  }
  # Layers × rows × heads × tokens × width on each device: eight prompts and four
  # that wait, and eight slots.
  assert shapes == {(2, 12, 1, 128, 128), (2, 8, 1, 383, 128)}
  prefill, decode = report.programs['prefill'], report.programs['decode']
  # 192 prompts, 32 a call: six calls.
  recipe = config.load(str(RECIPE))
  model = recipe.model(recipe.config, VOCABULARY)
  by_hand = model_cost.prefill_flops(model, 192, 128)
  assert prefill.model_flops == pytest.approx(by_hand / 8)
  assert prefill.calls == 1
  # A slot has two of 128 responses in turn, and three draws.
  assert decode.calls == 3 * 2 * 383
  full = next(
    estimate for estimate in decode.decoding if estimate.lengths == 'full'
  )
  assert full.steps == 2 * 383
  assert 'prompts begun as slots are free' in '\n'.join(report.lines())
  assert report.as_json()['admission'] == 'slots'


def test_admission_by_draws_counts_one_decoding_per_refill_of_the_slots(small):
  report, _ = small
  assert report.as_json()['admission'] == 'draws'
  assert report.programs['decode'].calls == 383
