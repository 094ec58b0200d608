# SPDX-License-Identifier: Apache-2.0
"""Plans: what they print, and the output of `covrl compile` that they read."""

import dataclasses
import itertools
import json
import re

import optax
import pytest
from train.process import RECIPES

from covrl.cli import main
from covrl.compile.plan import plan
from covrl.compile.units import time_text
from covrl.config import ConfigError, flatten, load
from covrl.data import ListSource, Problem
from covrl.parallel import topologies

RECIPE = RECIPES / 'toy_solved.py'


@pytest.fixture(scope='module')
def recipe():
  """The toy recipe with a reference policy."""
  return load(str(RECIPE), ['--config.train.keep_reference=True'])


def test_prints_sizes_prompts_and_memory(capsys):
  main(['plan', f'--config={RECIPE}', '--topology=v5p:2x4x4'])
  output = capsys.readouterr().out
  assert '4 iterations of 8 prompts × 4 responses' in output
  assert '4 updates each of 8 sequences' in output
  assert 'at most 72 tokens, 32 of them in responses (up to 6 + 4)' in output
  # ⌊0.05 · 32⌋
  assert 'entropy.fraction = 0.05: at most 1\n' in output
  assert output.count('reward 1') == output.count('prompt (') == 3
  assert re.search(r'\| \d \d \d :', output)
  assert '32 × v5p' in output
  assert 'estimate, not measured' in output


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [
    (4.92e-05, '49.2 µs'),
    (0.000164, '164 µs'),
    (0.0999, '99.9 ms'),
    (1.0, '1 s'),
    (59.9, '59.9 s'),
    (4932.0, '1.37 h'),
    (1e8, '1,157 days'),
  ],
)
def test_times_are_written_with_units(seconds, text):
  assert time_text(seconds) == text


def test_every_printed_time_has_three_digits_and_a_unit(recipe):
  slice_ = topologies.find_topology('v5p-8')
  output = list(plan(recipe, slice_))
  times = output[
    output.index(next(t for t in output if 'not measured' in t)) + 1 :
  ]
  number = r'\d{1,3}(\.\d{1,2})? (µs|ms|s|min|h|days)'
  for line in times[:-1]:
    assert re.fullmatch(rf'  \w+ +{number}', line)
  assert re.match(rf'  an iteration {number}, the run {number} ', times[-1])


def test_reports_sizes_that_do_not_divide_over_the_chips():
  recipe = load(str(RECIPE), ['--config.train.micro_batches=2'])
  output = list(plan(recipe, topologies.find_topology('v5e-8')))
  assert (
    'CANNOT RUN on this topology as configured: train.sequences_per_update / '
    'train.micro_batches must be a multiple of mesh.data × mesh.fsdp × '
    'mesh.expert, got 4 and 8; nearest possible: train.micro_batches = 1'
  ) in output
  fitting = list(plan(load(str(RECIPE)), topologies.find_topology('v5e-8')))
  assert not any('CANNOT RUN' in line for line in fitting)


def test_has_no_estimate_without_a_topology(recipe):
  output = '\n'.join(plan(recipe))
  assert 'give --topology' in output
  assert 'estimate' not in output


def test_reports_that_a_model_does_not_fit(recipe, monkeypatch):
  topology = topologies.find_topology('v5p-8')
  chip = dataclasses.replace(topology.chip, hbm=1024)
  output = '\n'.join(plan(recipe, topology._replace(chip=chip)))
  assert 'DOES NOT FIT' in output


def compile_output(**changed):
  """Returns the parts of `covrl compile --json` that a plan reads."""
  programs = {
    name: {
      'hbm_bytes': (5 + index) * 2**30,
      'hbm_limit_bytes': 95 * 2**30,
      'roofline_seconds': seconds,
      'calls': calls,
    }
    for index, (name, seconds, calls) in enumerate(
      [
        ('train_step', 2.0, 4),
        ('score', 3.0, 1),
        ('prefill', 0.5, 1),
        ('decode', 0.25, 6),
      ]
    )
  }
  return {
    'fits': True,
    'recipe': 'toy_solved:solved',
    'config': flatten(load(str(RECIPE)).config),
    'topology': 'v5p:2x4x4',
    'num_slices': 1,
    'parameters': 19_072,
    'programs': programs,
    **changed,
  }


def run_plan(tmp_path, content):
  """Runs `covrl plan` with the given output of `covrl compile`."""
  file = tmp_path / 'compiled.json'
  file.write_text(content if isinstance(content, str) else json.dumps(content))
  main(
    [
      *('plan', f'--config={RECIPE}', '--topology=v5p-64'),
      f'--compiled={file}',
    ]
  )


def test_uses_the_output_of_compile(tmp_path, capsys):
  run_plan(tmp_path, compile_output())
  output = capsys.readouterr().out
  assert 'decode needs the most memory: 8.0 GiB of 95.0 GiB per chip' in output
  assert 'it fits' in output
  assert 'sampling   2 s' in output
  assert 'scoring    3 s' in output
  assert 'training   8 s' in output
  # 4 iterations of 13 s.
  assert 'an iteration 13 s, the run 52 s without' in output
  assert 'may fit' not in output
  other_config = compile_output()['config'] | {'seed': 7, 'train.clip_low': 0.1}
  run_plan(tmp_path, compile_output(fits=False, config=other_config))
  assert 'it DOES NOT FIT' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ('no JSON', 'must be the output of `covrl compile --json`'),
    ('[]', 'must be the output of `covrl compile --json`'),
    ('[' * 200_000, 'must be the output of `covrl compile --json`'),
    (
      compile_output(parameters=19_073),
      'must be of a policy with 19,072 parameters, got',
    ),
    (
      compile_output(
        config=compile_output()['config']
        | {'entropy.selection_source': 'current'}
      ),
      'a recipe with entropy.selection_source = old, got',
    ),
    (
      compile_output(programs={}),
      'must be the output of `covrl compile --json`',
    ),
    (compile_output(recipe='other'), 'describes other on 1 × v5p:2x4x4'),
    (
      compile_output(num_slices=2),
      'describes toy_solved:solved on 2 × v5p:2x4x4',
    ),
    (compile_output(topology='v5p:4x4x4'), 'on 1 × v5p:4x4x4'),
    (
      compile_output(
        config=compile_output()['config'] | {'rollout.max_response_length': 5}
      ),
      'a recipe with rollout.max_response_length = 4, got',
    ),
    (
      compile_output(programs={'score': compile_output()['programs']['score']}),
      'with score',
    ),
  ],
)
def test_refuses_output_of_compile_for_another_run(
  tmp_path, capsys, content, message
):
  with pytest.raises(SystemExit) as ended:
    run_plan(tmp_path, content)
  assert ended.value.code == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1


def test_counts_selected_tokens_of_chains_that_select(recipe):
  plain = load(str(RECIPES / 'toy_plain.py'))
  words = 'tokens that the token chain selects'
  for tested, expected in ((recipe, 1), (plain, 0)):
    lines = itertools.takewhile(lambda x: 'prompt (' not in x, plan(tested))
    assert sum(words in line for line in lines) == expected


def test_fields_without_effect_are_reported(recipe):
  changed = dataclasses.replace(recipe, overridden=('maze.side', 'seed'))
  warnings = [line for line in plan(changed) if line.startswith('warning')]
  assert [line for line in warnings if 'has no effect: nothing' in line] == [
    'warning: maze.side = 5 has no effect: nothing in this recipe reads it'
  ]


def test_warnings_of_a_run_are_reported(recipe):
  """Those of parameter chains and micro-batches, like those of `covrl train`."""
  changed = dataclasses.replace(
    recipe,
    token_tx=lambda config: optax.clip_by_global_norm(0.01),
    warm_start_tx=lambda config: optax.sgd(-0.1),
  )
  changed.config.train.micro_batches = 2
  changed.config.warm_start.steps = 3
  warnings = [line for line in plan(changed) if line.startswith('warning')]
  for start in (
    "warning: the recipe's warm_start_tx moves parameters along their gradient",
    "warning: the recipe's token chain has another result with train.micro_batches",
  ):
    assert sum(line.startswith(start) for line in warnings) == 1


def test_fields_are_refused_before_the_first_line():
  prime = load('countdown:prime', ['--config.train.keep_reference=False'])
  with pytest.raises(ConfigError, match='keep_reference'):
    next(iter(plan(prime)))


def test_refuses_wrong_references():
  # Its solutions are in random order, so that not all earn the reward 1.
  imperfect = load(str(RECIPES / 'toy_kl_cov.py'))
  with pytest.raises(ConfigError, match='must earn the reward 1, got'):
    list(plan(imperfect))


def test_uses_references_of_problems_without_solutions(recipe):
  references = ('7 4 2', '4 7 2', [4, 7, 2])
  problems = [
    Problem(prompt='4 7 2 :', reference=reference, source='toy')
    for reference in references
  ]
  task = dataclasses.replace(
    recipe.task(recipe.config), train=ListSource(problems), held_out=()
  )
  output = list(plan(dataclasses.replace(recipe, task=lambda config: task)))
  assert [line for line in output if line.startswith('  reference')] == [
    "  reference as a response '7 4 2': reward 1",
    # Not every task rewards its reference as it stands.
    "  reference as a response '4 7 2': reward 0",
    '  reference [4, 7, 2], without a known response',
  ]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--topology=h100'], 'topology of GPUs must be one of'),
    (['--num-slices=0'], 'num_slices must lie in [1, 1024], got 0'),
    (
      ['--topology=v5p-8', '--num_slices=1000000'],
      'num_slices must lie in [1, 1024], got 1000000',
    ),
    (['--topology=h100:8', '--num_slices=2'], 'num_slices must be 1 for GPUs'),
    (['--config.train.iteratons=3'], 'did you mean train.iterations'),
  ],
)
def test_reports_bad_input_in_one_sentence(capsys, arguments, message):
  with pytest.raises(SystemExit) as ended:
    main(['plan', f'--config={RECIPE}', *arguments])
  assert ended.value.code == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
