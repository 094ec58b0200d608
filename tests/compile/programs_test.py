# SPDX-License-Identifier: Apache-2.0
"""A recipe's programs, compiled ahead of time for TPUs."""

import json
import math
import pathlib
import platform
import re
import sys

import jax
import numpy as np
import pytest

from covrl import config
from covrl.cli import main
from covrl.compile import PROGRAM_NAMES, compile_recipe, compiling, programs
from covrl.compile.collectives import COLLECTIVE_OPCODES
from covrl.compile.hlo import parse
from covrl.parallel import topologies

RECIPE = pathlib.Path(__file__).parent / 'recipes' / 'small.py'
ROOT = pathlib.Path(__file__).parents[2]
CACHE = ROOT / '.jax_cache'
MESH_OF_64_CHIPS = [
  '--config.mesh.data=4',
  '--config.mesh.fsdp=16',
  '--config.train.micro_batches=4',
]

needs_libtpu = pytest.mark.skipif(
  sys.platform != 'linux' or platform.machine() != 'x86_64',
  reason='libtpu, of the dev extra, is for Linux on x86-64 only',
)


def compile_report(topology, *overrides, level='O0', **settings):
  """Returns a report; level `O0` compiles fastest and gives slower programs."""
  jax.config.update('jax_optimization_level', level)
  try:
    return compile_recipe(
      config.load(str(RECIPE), list(overrides)),
      topologies.find_topology(topology),
      **settings,
    )
  finally:
    jax.config.update('jax_optimization_level', 'UNKNOWN')


def collectives_of(module):
  """Returns the collective instructions of a program."""
  return [
    instruction
    for computation in module.computations.values()
    for instruction in computation.instructions.values()
    if instruction.opcode in COLLECTIVE_OPCODES
  ]


@pytest.fixture(scope='module')
def compiled_modules():
  """Records the compiled programs, as text and parsed."""
  modules = []

  def record(text, platform):
    modules.append((text, parse(text, platform)))
    return modules[-1][1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(compiling, 'parse', record)
    yield modules


@pytest.fixture(scope='module')
def small_report(compiled_modules):
  """Returns the report of all programs and their parsed HLO."""
  report = compile_report('v5e:2x4', level='UNKNOWN')
  modules = [module for _, module in compiled_modules[-4:]]
  return report, dict(zip(PROGRAM_NAMES, modules, strict=True))


@needs_libtpu
def test_json_report_is_complete(small_report):
  report, _ = small_report
  described = json.loads(json.dumps(report.as_json()))
  assert described['fits'] is True
  assert described['chips'] == 8
  assert tuple(described['programs']) == PROGRAM_NAMES
  for program in described['programs'].values():
    assert 0 < program['hbm_bytes'] < program['hbm_limit_bytes']
    assert sum(program['hbm'].values()) == program['hbm_bytes']
    assert program['flops'] > 0
    assert program['bytes'] > 0
    assert program['roofline_seconds'] == max(program['seconds'].values()) > 0
    assert 0 < program['mfu_ceiling'] < 1
    assert program['uncounted_kernels'] == []
    for collective in program['collectives']:
      assert {'kind', 'chips', 'network', 'count', 'bytes'} == set(collective)
      assert collective['network'] == 'ici'
      assert collective['bytes'] >= 0


@needs_libtpu
def test_text_report_has_every_estimate(small_report):
  report, _ = small_report
  lines = list(report.lines())
  assert lines[0].endswith(
    'on v5e:2x4 (v5litepod-8, 8 chips), compiled and not run'
  )
  assert lines[-1].startswith('It fits: ')
  text = '\n'.join(lines)
  # One for each program, and three for the lengths of responses.
  assert text.count('an estimate') == len(PROGRAM_NAMES) + 3
  assert 'bound by' in text
  assert 'reduce-scatter' in text


@needs_libtpu
def test_large_gradients_are_reduced_by_reduce_scatter(small_report):
  report, _ = small_report
  cost = report.programs['train_step'].cost
  assert 'reduce-scatter' in {
    collective.kind for collective, _ in cost.collectives
  }
  # Pairs of devices along the fsdp axis.
  device_grid = np.arange(8).reshape(tuple(report.mesh.values()))
  pairs = [set(pair) for pair in np.moveaxis(device_grid, 1, -1).reshape(-1, 2)]
  # Bytes of the smallest matrix's gradient: the keys of one head.
  smallest_gradient_bytes = 4 * 512 * 128
  for collective, _ in cost.collectives:
    spans_fsdp = any(
      pair <= set(group) for group in collective.groups for pair in pairs
    )
    if collective.kind == 'all-reduce' and spans_fsdp:
      assert collective.size < smallest_gradient_bytes, collective


@needs_libtpu
def test_no_array_has_logits_of_all_tokens(small_report):
  report, modules = small_report
  rows, width, vocabulary = 16, 512, 4096
  shards = math.prod(report.mesh.values())
  num_logits = (
    rows // 2 * width * vocabulary // shards
  )  # a micro-batch's, per chip
  for name in ('train_step', 'score'):
    for computation in modules[name].computations.values():
      for instruction in computation.instructions.values():
        for shape in instruction.shapes:
          assert shape.elements < num_logits, (name, instruction.name, shape)


@needs_libtpu
def test_decoding_reads_weights_and_cache_once(small_report):
  report, _ = small_report
  decode = report.programs['decode']
  assert decode.ideal_bytes is not None
  # Keys and values of two layers, one head, 383 slots of four rows a chip and
  # 128 of their two prompts, which responses share; and half of the
  # unembedding. The layers' small weights may stay in VMEM between tokens.
  min_bytes = 2 * 2 * (4 * 383 + 2 * 128) * 128 * 2 + 512 * 4096 // 2 * 2
  assert min_bytes < decode.cost.bytes < 1.15 * min_bytes
  assert decode.cost.bytes < 1.15 * decode.ideal_bytes


@needs_libtpu
@pytest.mark.slow
def test_a_large_cache_is_read_once_and_not_copied(compiled_modules):
  """7B on 64 chips, whose cache was copied four times a token."""
  report = compile_recipe(
    config.load('reasoning:qwen2_5_7b_kl_cov', MESH_OF_64_CHIPS),
    topologies.find_topology('v5p:4x4x4'),
    names=('decode',),
  )
  decode = report.programs['decode']
  assert decode.cost is not None
  assert decode.memory is not None
  assert decode.ideal_bytes is not None
  assert decode.cost.bytes < 1.1 * decode.ideal_bytes
  assert decode.memory.temporaries < 2**30
  # 128 rows a chip, one head, 8,191 slots and a whole tile.
  cache = (28, 128, 1, 8192, 128)
  (_, module) = compiled_modules[-1]
  for computation in module.computations.values():
    for each in computation.instructions.values():
      if each.opcode in ('copy', 'copy-start', 'transpose'):
        assert each.shapes[0].dims != cache, each


@needs_libtpu
def test_no_token_waits_for_a_predicate_of_all_chips(small_report):
  report, modules = small_report
  assert report.programs['decode'].cost is not None
  kinds = {
    shape.dtype
    for each in collectives_of(modules['decode'])
    for shape in each.shapes
    if shape.elements
  }
  assert 'pred' not in kinds


@needs_libtpu
def test_prompts_are_cached_once_per_group(small_report):
  """Eight prompts of 128 tokens, and sixteen responses."""
  report, modules = small_report
  assert report.programs['prefill'].fits
  shapes = {
    shape.dims
    for each in modules['decode'].entry.instructions.values()
    if each.opcode == 'parameter'
    for shape in each.shapes
    if len(shape.dims) == 5
  }
  # Layers × rows per chip × heads × slots × width.
  assert shapes == {(2, 2, 1, 128, 128), (2, 4, 1, 383, 128)}


@needs_libtpu
@pytest.mark.slow
def test_compiles_the_update_and_scoring_of_a_critic():
  recipe = config.load(str(RECIPE.with_name('small_ppo.py')))
  names = ('critic_step', 'critic_score')
  assert programs.program_names(recipe) == (*PROGRAM_NAMES, *names)
  assert programs.program_names(config.load(str(RECIPE))) == PROGRAM_NAMES
  with pytest.raises(ValueError, match=r"must be among .*, got 'actor_step'"):
    compile_recipe(
      recipe, topologies.find_topology('v5e:2x4'), names=('actor_step',)
    )
  jax.config.update('jax_optimization_level', 'O0')
  try:
    report = compile_recipe(
      recipe, topologies.find_topology('v5e:2x4'), names=('critic_step',)
    )
  finally:
    jax.config.update('jax_optimization_level', 'UNKNOWN')
  step, score = (report.programs[name] for name in names)
  # Parameters and two moments of policy and critic, in float32: two replicas,
  # each on four chips. The critic has no unembedding.
  policy = 12 * report.parameters / 4
  critic = 12 * (report.parameters - 512 * 4096) / 4
  for program, networks_read, networks_unread in ((step, 3, 0), (score, 1, 2)):
    assert program.memory is not None
    unread = policy + critic * networks_unread / 3
    assert program.memory.unread_state == pytest.approx(unread, rel=0.05)
    assert program.memory.arguments > networks_read * critic / 3
  assert step.model_flops == pytest.approx(3 * score.model_flops)
  assert (step.calls, score.calls) == (1, 1)


@needs_libtpu
def test_gradients_of_parameters_sharded_over_every_chip_are_reduce_scattered():
  """The default mesh reduce-scatters all large gradients, too."""
  report = compile_report(
    'v5e:2x4',
    '--config.mesh.data=1',
    '--config.mesh.fsdp=8',
    '--config.mesh.tensor=1',
    names=('train_step',),
  )
  (program,) = report.programs.values()
  assert program.cost is not None
  for each, _ in program.cost.collectives:
    if each.kind == 'all-reduce':
      assert each.size < 4 * 512 * 128, each


@needs_libtpu
def test_weights_move_to_the_sampler_mesh_layer_by_layer(compiled_modules):
  compile_report(
    'v5p:2x4x4',
    '--config.mesh.data=1',
    '--config.mesh.fsdp=16',
    '--config.mesh.tensor=2',
    '--config.rollout.tensor=4',
    '--config.rollout.prompts_per_iteration=32',
    '--config.train.sequences_per_update=64',
    names=('prefill',),
  )
  text, _ = compiled_modules[-1]
  for columns, is_present in ((1024 // 4, True), (1024, False)):
    assert (f'bf16[2,512,{columns}]' in text) == is_present


@needs_libtpu
def test_reports_programs_that_do_not_fit():
  # Too many rows at once, even if everything is recomputed: out of memory.
  report = compile_report(
    'v5e:2x4',
    '--config.rollout.prompts_per_iteration=32768',
    '--config.train.sequences_per_update=65536',
    '--config.train.micro_batches=1',
    '--config.train.remat=everything',
    names=('train_step',),
  )
  assert not report.fits
  described = report.as_json()['programs']['train_step']
  assert described['hbm_bytes'] > described['hbm_limit_bytes']
  assert list(report.lines())[-1].startswith(
    'It does not fit: train_step needs '
  )


@pytest.fixture(scope='module')
def two_slices():
  """Returns the report of an update on two slices, with offloaded moments."""
  return compile_report(
    'v5e:2x2',
    '--config.train.offload_optimizer=true',
    '--config.train.remat=host',
    num_slices=2,
    names=('train_step',),
  )


@needs_libtpu
def test_slices_exchange_over_dcn(two_slices):
  assert two_slices.as_json()['chips'] == 8
  (program,) = two_slices.programs.values()
  sent = {each['network']: each for each in program.collective_totals()}
  assert set(sent) == {'ici', 'dcn'}
  assert sent['dcn']['kind'] == 'all-reduce'
  assert program.seconds()['dcn'] > 0


@needs_libtpu
def test_offloads_optimizer_state_to_host_memory(small_report, two_slices):
  report, _ = small_report
  on_device = report.programs['train_step']
  # As many chips, with the same shards.
  offloaded = two_slices.programs['train_step']
  assert on_device.cost is not None
  assert on_device.memory is not None
  assert offloaded.cost is not None
  assert offloaded.memory is not None
  # Two moments of each parameter, over fsdp and tensor; fetched, brought back.
  moments = 2 * 4 * report.parameters / 4
  assert on_device.memory.arguments - offloaded.memory.arguments > 0.9 * moments
  assert on_device.cost.host_bytes == 0
  assert offloaded.cost.host_bytes > 2 * moments


@pytest.mark.parametrize(
  ('arguments', 'sentence'),
  [
    (['--topology=v5p:4x4x5'], r"the topology must be one of .*'v5p:4x4x5'"),
    (
      ['--topology=v5e:2x2', '--config.mesh.fsdp=3'],
      'a mesh must multiply to the 4 devices there are, got ',
    ),
    (
      ['--topology=v5e:2x4', '--programs=train'],
      r"programs must be among .*, got 'train'",
    ),
    (
      ['--topology=v5e:2x4', '--num-slices=0'],
      r'num_slices must lie in \[1, 1024\], got 0',
    ),
    (
      ['--topology=v5e:2x4', '--num-slices=3', '--config.mesh.fsdp=6'],
      'data must be a multiple of the 3 slices, got 2; nearest possible: data = 3',
    ),
  ],
)
@needs_libtpu
def test_reports_bad_input_in_one_sentence(
  arguments, sentence, capsys, monkeypatch
):
  # The command line sets both for the process.
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', str(CACHE))
  with pytest.raises(SystemExit) as ended:
    main(['compile', f'--config={RECIPE}', *arguments])
  assert ended.value.code == 2
  error = capsys.readouterr().err
  assert error.startswith('covrl: ')
  assert error.count('\n') == 1
  assert re.search(sentence, error)
