# SPDX-License-Identifier: Apache-2.0
"""Checks of the results of recipe functions: types, shapes, dtypes and names."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train import toy
from train.networks.critic_test import inputs, make_config
from train.networks.networks_test import CRITIC, TX, with_targets
from train.updates import padded_batch

import covrl
from covrl.config import Config, ConfigError, Recipe
from covrl.data import ListSource, Suite
from covrl.data.packing import token_rows
from covrl.entropy import update_signal
from covrl.models import tiny
from covrl.parallel import sharding
from covrl.tasks.task import make_task
from covrl.train import train
from covrl.train.algorithm import (
  Algorithm,
  checked_loss,
  warm_start_transformation,
)
from covrl.train.networks import critic, critic_advantages
from covrl.train.networks.estimator import checked_estimate
from covrl.train.networks.step import make_network_step
from covrl.train.rollout_batch import merge_metrics, token_advantages
from covrl.train.setup.build import build, check_problems_in_memory
from covrl.train.setup.initial_policy import make_policy_of_size
from covrl.train.step import StepSettings
from covrl.types import NetworkState


class Source:
  """A source of problems with any length and names."""

  def __init__(self, length, names=('toy',)):
    self.length, self.names = length, names

  def __len__(self):
    return self.length

  def __getitem__(self, index):
    raise IndexError(index)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'tokenizer': None}, "task's tokenizer must be a Tokenizer, got None"),
    ({'train': [1]}, r"task's train must be a ProblemSource.*, got \[1\]"),
    ({'train': iter(())}, "task's train must be a ProblemSource"),
    ({'train': Source(2.5)}, "task's train must have a length of at least 0"),
    ({'train': Source(2**70)}, "task's train must have a length of at least 0"),
    ({'solved': Source(-1)}, "task's solved must have a length of at least 0"),
    (
      {'train': Source(2, names='toy')},
      "names of the task's train must be a tuple of texts, got 'toy'",
    ),
    ({'answer_extractor': None}, "task's answer_extractor must be a function"),
    ({'reference_response': 5}, "task's reference_response must be a function"),
    ({'checked_sources': None}, "task's checked_sources must be a sequence"),
    ({'solved': {}}, "task's solved must be a ProblemSource or None, got {}"),
    ({'held_out': None}, "task's held_out must be a sequence of Problem"),
    ({'held_out': iter(())}, "task's held_out must be a sequence of Problem"),
    (
      {'rewards': None},
      "task's rewards must be a sequence of Reward, got None",
    ),
    ({'rewards': [len]}, "task's rewards must be a sequence of Reward"),
    ({'suites': 'math500'}, "task's suites must be a sequence of Suite"),
    ({'notes': [5]}, r"task's notes must be a sequence of texts, got \[5\]"),
    ({'description': 3}, "task's description must be a text, got 3"),
  ],
)
def test_fields_of_tasks_of_another_type_are_refused(changes, message):
  task = toy.make_task(toy.get_config())
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(task, **changes)


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    (['a', 'b', 'a'], "must have different names, got two 'a'"),
    (['Aime', 'aime'], "differ by more than case, got 'Aime' and 'aime'"),
    (['../a'], 'must be one of a file, without slashes'),
    ([''], 'must be one of a file, without slashes'),
    (['held_out'], 'must not be named held_out'),
    (['iteration_000001'], 'must not be named held_out or iteration_'),
  ],
)
def test_suites_whose_results_would_replace_others_are_refused(names, message):
  task = toy.make_task(toy.get_config())
  suites = [Suite(name=name, problems=task.held_out) for name in names]
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(task, suites=suites)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'task': None}, "recipe's task must return a Task, got NoneType"),
    ({'model': {}}, "recipe's model must return a ModelConfig, got dict"),
    (
      {'model': dataclasses.replace(tiny(15), param_dtype='float64')},
      "recipe's model must have floats of at most 32 bits, got float64",
    ),
    ({'advantages': None}, "recipe's advantages must return a function"),
    ({'loss': None}, "recipe's loss must return a function, got None"),
    ({'token_tx': len}, "recipe's token_tx must return an optax.Gradient"),
    ({'tx': None}, "recipe's tx must return an optax.GradientTransformation"),
    ({'warm_start_tx': 1}, "recipe's warm_start_tx must return an optax"),
  ],
)
def test_functions_of_recipes_that_return_another_type_are_refused(
  changes, message
):
  functions = {
    name: lambda *_, found=found: found for name, found in changes.items()
  }
  recipe = toy.recipe(**functions)
  with pytest.raises(ConfigError, match=message):
    call_all(recipe)


def call_all(recipe):
  """Calls the functions of a recipe as a run does."""
  make_task(recipe)
  make_policy_of_size(recipe, 20)
  Algorithm.from_recipe(recipe)
  warm_start_transformation(recipe)


@pytest.mark.parametrize(
  ('compute', 'error', 'message'),
  [
    (lambda r, g: r[:3], ValueError, r'must be \[S\] = \(8,\), got \(3,\)'),
    (lambda r, g: r.mean(), ValueError, r'must be \[S\] = \(8,\), got \(\)'),
    # These would be broadcast to all responses, or all tokens.
    (lambda r, g: r[:1, None], ValueError, r'= \(8, 4\), got \(1, 1\)'),
    (lambda r, g: r[:, None], ValueError, r'= \(8, 4\), got \(8, 1\)'),
    (lambda r, g, mask: 1.0 * mask[:1], ValueError, r'got \(1, 4\)'),
    (lambda r, g: r > 0, TypeError, 'must be an array of numbers, got bool'),
  ],
)
def test_advantages_of_another_shape_or_dtype_are_refused(
  compute, error, message
):
  run = jax.jit(token_advantages(compute))
  mask = np.ones((8, 4), bool)
  with pytest.raises(error, match=message):
    run(np.ones(8, np.float32), np.arange(8), mask)


def test_advantages_of_integers_become_float32():
  run = jax.jit(token_advantages(lambda r, g: (r > 0).astype(np.int32)))
  found = run(np.arange(2.0), np.arange(2), np.ones((2, 3), bool))
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      lambda value, aux: value,
      "recipe's loss must compute a scalar and a Loss",
    ),
    (lambda value, aux: (value, {}), 'must compute a scalar and a LossAux'),
    (
      lambda value, aux: (aux.ratio, aux),
      r'must be a float scalar, got float32 of shape \(1, 2\)',
    ),
    (lambda value, aux: (1, aux), 'must be a float scalar, got 1'),
    (
      lambda value, aux: (value, aux._replace(score_weight=None)),
      "LossAux.score_weight of the recipe's loss must be an array of numbers",
    ),
    (
      lambda value, aux: (value, aux._replace(log_ratio=value)),
      r'LossAux.log_ratio of the .* must be \[B, T\] = \(1, 2\), got \(\)',
    ),
    (
      lambda value, aux: (value, aux._replace(log_ratio=aux.clipped)),
      'LossAux.log_ratio of .* must be an array of numbers, got bool',
    ),
  ],
)
def test_results_of_losses_of_another_form_are_refused(change, message):
  def loss(stats, **context):
    return change(*covrl.losses.policy_gradient(stats, **context))

  ones = jnp.ones((1, 2))
  stats = covrl.TokenStats(logprobs=-ones, entropy=ones)
  with pytest.raises((TypeError, ValueError), match=message):
    checked_loss(loss)(stats, advantages=ones, old_logprobs=-ones, weights=ones)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda c, s: (c.advantages, s), 'must return Credit and its next state'),
    (
      lambda c, s: (c._replace(advantages=c.advantages[:, :1]), s),
      r"estimator's advantages must be \[S, T\]",
    ),
    (
      lambda c, s: (c._replace(network_targets={}), s),
      r"must have the entries \['old_values', 'returns'\], got \[\]",
    ),
    (
      lambda c, s: (
        c._replace(
          network_targets={**c.network_targets, 'returns': c.advantages.T}
        ),
        s,
      ),
      r"estimator's returns must be \[S, T\]",
    ),
    (
      lambda c, s: (c._replace(metrics={'x': c.advantages}), s),
      "estimator's metric 'x' must be a float scalar",
    ),
    (lambda c, s: (c, None), 'next state must have the shapes and dtypes'),
    (
      lambda c, s: (c, {'kl_coefficient': jnp.int32(1)}),
      'next state must have',
    ),
  ],
)
def test_results_of_estimators_of_another_form_are_refused(change, message):
  estimator = critic_advantages(make_config())

  def estimate(state, credit_inputs):
    return change(*estimator.estimate(state, credit_inputs))

  changed_estimator = dataclasses.replace(estimator, estimate=estimate)
  with pytest.raises((TypeError, ValueError), match=message):
    jax.eval_shape(
      checked_estimate(changed_estimator), estimator.init(), inputs()
    )


def test_results_of_estimators_are_of_float32():
  estimator = critic_advantages(make_config())

  def estimate(state, credit_inputs):
    credit, state = estimator.estimate(state, credit_inputs)
    return credit._replace(advantages=jnp.int8(credit.advantages)), state

  changed_estimator = dataclasses.replace(estimator, estimate=estimate)
  credit, _ = jax.eval_shape(
    checked_estimate(changed_estimator), estimator.init(), inputs()
  )
  assert credit.advantages.dtype == np.float32


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'loss': lambda v, rows: v.sum()}, 'must compute a scalar and a dict'),
    ({'loss': lambda v, rows: (v, {})}, 'must be a float scalar, got float32'),
    ({'metrics': lambda *_: None}, 'must be a dict of scalars'),
    ({'metrics': lambda v, *_: {'x': v}}, "metric 'x' must be a float scalar"),
    # It would hide updates that are skipped.
    (
      {'metrics': lambda v, *_: {'skipped': v.sum()}},
      r"names other than gradient_norm, loss, skipped, got \['skipped'\]",
    ),
  ],
)
def test_results_of_networks_of_another_form_are_refused(changes, message):
  network = dataclasses.replace(critic(make_config()), tx=TX, **changes)
  run = make_network_step(network, CRITIC, StepSettings(temperature=1.0))
  params = CRITIC.abstract_params(mesh := sharding.make_mesh((8,)))
  state = NetworkState(params=params, opt_state=jax.eval_shape(TX.init, params))
  with (
    sharding.use_mesh(mesh, sharding.TRAIN_RULES),
    pytest.raises((TypeError, ValueError), match=message),
  ):
    jax.eval_shape(run, state, with_targets(padded_batch()))


def test_functions_that_change_the_configuration_are_refused(tmp_path):
  def task(config: Config):
    config.train.learning_rate = 0.5
    return toy.make_task(config)

  recipe: Recipe = toy.recipe(task=task)
  message = (
    'must not change the configuration, got train.learning_rate = 0.5, which'
    ' was 0.0003'
  )
  with pytest.raises(ConfigError, match=message):
    train(recipe, str(tmp_path / 'run'))
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.parametrize('solution', [None, '', ' '])
def test_solutions_without_text_are_refused(solution):
  task = toy.make_task(toy.get_config())
  problem = dataclasses.replace(task.train[0], solution=solution)
  with pytest.raises(ValueError, match=r'must have a solution, got .* without'):
    token_rows([problem], task.tokenizer, 9)


@pytest.mark.parametrize(
  ('change', 'form'),
  [
    (lambda signal: None, 'NoneType of nothing'),
    (lambda signal: {'a': signal.logprobs}, 'dict of float32'),
    (lambda signal: jax.tree.map(lambda x: x[:1], signal), r'float32\[1, 2\]'),
    (lambda signal: jax.tree.map(jnp.int32, signal), r'int32\[2, 2\]'),
  ],
)
def test_signals_of_token_chains_keep_their_form(change, form):
  ones = jnp.ones((2, 2))
  stats = covrl.TokenStats(logprobs=-ones, entropy=ones)
  chain = optax.stateless(lambda signal, params: change(signal))
  with pytest.raises(TypeError, match=f'a signal of the form.*got .*{form}'):
    update_signal(chain, stats, optax.EmptyState(), stats)


def test_a_network_needs_a_parameter_chain():
  with pytest.raises(ValueError, match='tx must be an optax'):
    dataclasses.replace(critic(make_config()), tx=None)


def test_metrics_of_different_origin_have_different_names():
  assert merge_metrics({'a': 1.0}, {}, {'b': 2.0}) == {'a': 1.0, 'b': 2.0}
  with pytest.raises(ValueError, match="different names, got two 'loss'"):
    merge_metrics({'entropy': 1.0, 'loss': 1.0}, {'loss': 7.0})


@pytest.mark.parametrize(
  ('train', 'solution', 'message'),
  [
    ('1 2 3 4 5 6 7 8 9 :', '1', 'a prompt must have at most 6 tokens, got 11'),
    ('1 2 3 :', '1 ' * 50, 'a prompt and its solution must have at most 9 tok'),
  ],
)
def test_problems_that_are_too_long_are_found_before_training(
  train, solution, message
):
  """A run that draws one of them later ends, and again when it is resumed."""
  task, config = toy.make_task(toy.get_config()), toy.get_config()
  problems = [task.train[index] for index in range(20)]
  last = dataclasses.replace(problems[0], prompt=train, solution=solution)
  source = ListSource([*problems, last])
  check_problems_in_memory(task, config)
  changed = dataclasses.replace(task, train=source, solved=source)
  with pytest.raises(ValueError, match=message):
    check_problems_in_memory(changed, config)


def test_settings_of_jax_that_a_recipe_changes_are_refused():
  name = 'jax_numpy_rank_promotion'
  before = getattr(jax.config, name)

  def strict(config):
    jax.config.update(name, 'raise')
    return toy.make_task(config)

  try:
    with pytest.raises(
      ValueError, match=f'{name.upper()} must be allow or warn'
    ):
      build(toy.recipe(task=strict), None, print)
  finally:
    jax.config.update(name, before)
