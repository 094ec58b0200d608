# SPDX-License-Identifier: Apache-2.0
"""A plan's figures, each against what it must be by hand."""

import dataclasses
import re

import pytest
from train.process import RECIPES

from covrl import topologies
from covrl.cli import main
from covrl.config import ConfigError, load
from covrl.models import Policy
from covrl.plan import Seconds, estimate, needed, plan

RECIPE = RECIPES / 'toy_solved.py'


@pytest.fixture(scope='module')
def recipe():
  return load(str(RECIPE), ['--config.train.keep_reference=True'])


@pytest.fixture(scope='module')
def policy(recipe):
  task = recipe.module.make_task(recipe.config)
  return Policy(
    recipe.module.make_model(recipe.config, task.tokenizer.vocab_size)
  )


def test_memory(recipe, policy):
  memory = needed(recipe, policy)
  weights = 4 * policy.num_params
  assert memory.params == memory.frozen == memory.gradients == weights
  # Adam's two moments, and counters.
  assert 2 * weights < memory.optimiser < 2 * weights + 64
  # 32 sequences of 6 + 4 − 1 tokens, keys and values in float32.
  model = policy.config
  token = model.num_layers * model.num_kv_heads * model.head_dim * 2 * 4
  assert memory.cache == 32 * 9 * token


def test_estimate(recipe, policy):
  memory = needed(recipe, policy)
  slice_ = topologies.find('v5p-8')
  seconds = estimate(recipe.config, policy, memory, slice_, 2)
  flops, bandwidth = 8 * 459e12 * 0.4, 8 * 2765e9 * 0.6
  tokens = 32 * 9
  assert seconds.training == pytest.approx(
    6 * policy.num_params * tokens / flops
  )
  # The policy's forward and the reference's.
  assert seconds.scoring == pytest.approx(
    4 * policy.num_params * tokens / flops
  )
  assert seconds.sampling == pytest.approx(
    4 * (memory.params + memory.cache / 2) / bandwidth
  )
  assert seconds.iteration == pytest.approx(
    sum(dataclasses.asdict(seconds).values())
  )
  assert isinstance(seconds, Seconds)


def test_what_is_printed(capsys):
  main(['plan', f'--config={RECIPE}', '--topology=v5p:2x4x4'])
  said = capsys.readouterr().out
  assert '4 iterations of 8 prompts × 4 responses' in said
  assert '4 updates each of 8 sequences' in said
  assert 'at most 72 tokens, 32 of them of responses (up to 6 + 4)' in said
  # ⌊0.05 · 32⌋
  assert 'entropy.fraction = 0.05: at most 1\n' in said
  assert said.count('reward 1') == said.count('prompt (') == 3
  assert re.search(r'\| \d \d \d :', said)
  assert '32 × v5p' in said
  assert 'estimate, not measured' in said


def test_without_a_topology_there_is_no_estimate(recipe):
  said = '\n'.join(plan(recipe))
  assert 'give --topology' in said
  assert 'estimate' not in said


def test_too_much_memory_is_told(recipe, monkeypatch):
  small = topologies.find('v5p-8')
  chip = dataclasses.replace(small.chip, hbm=1024)
  said = '\n'.join(plan(recipe, small._replace(chip=chip)))
  assert 'DOES NOT FIT' in said


def test_a_wrong_reference_is_refused():
  # Its solutions are in any order, so that there is something to learn.
  imperfect = load(str(RECIPES / 'toy_kl_cov.py'))
  with pytest.raises(ConfigError, match='must earn the reward 1, that to'):
    list(plan(imperfect))


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--topology=h100'], 'topology must be one of'),
    (['--num-slices=0'], '--num-slices must be at least 1'),
    (['--config.train.iteratons=3'], 'did you mean train.iterations'),
  ],
)
def test_bad_input(capsys, arguments, message):
  with pytest.raises(SystemExit) as ended:
    main(['plan', f'--config={RECIPE}', *arguments])
  assert ended.value.code == 2
  error = capsys.readouterr().err
  assert message in error
  assert error.count('\n') == 1
