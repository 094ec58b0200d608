# SPDX-License-Identifier: Apache-2.0
"""States that gradient transformations return: of the form that they were given."""

import jax
import jax.numpy as jnp
import optax
import pytest

import covrl
from covrl.chain_checks import check_pair, check_state
from covrl.entropy import update_signal
from covrl.models import Policy, tiny
from covrl.train.apply import run_chain
from covrl.train.sft import SupervisedBatch, SupervisedState, make_sft_step

COUNT = jnp.zeros((), jnp.int32)
OTHER_STATES = {
  'another dtype': (COUNT, lambda s: s + 0.5, r'int32\[\], got float32\[\]'),
  'a wider dtype': (
    jnp.zeros((), jnp.bfloat16),
    lambda s: s.astype(jnp.float32),
    r'bfloat16\[\], got float32\[\]',
  ),
  'another shape': (COUNT, lambda s: s + jnp.ones(3, int), r'got int32\[3\]'),
  'other names': (
    {'a': COUNT},
    lambda s: {'b': s['a']},
    'the structure of its',
  ),
  'more arrays': (
    (COUNT,),
    lambda s: (*s, COUNT),
    'the structure of its state',
  ),
  'nothing': (COUNT, lambda s: None, 'the structure of its state'),
  'a key of another kind': (
    jax.random.key(0),
    lambda s: jax.random.key(0, impl='rbg'),
    'keep the form of its state, key<',
  ),
}


def chain_of(state, change):
  """A chain whose state begins as `state` and is changed in every update."""
  return optax.GradientTransformation(
    lambda params: state,
    lambda updates, state, params=None: (updates, change(state)),
  )


@pytest.mark.parametrize('name', OTHER_STATES)
def test_states_of_another_form_are_refused(name):
  state, change, sentence = OTHER_STATES[name]
  chain = chain_of(state, change)
  params = {'w': jnp.ones(2)}
  with pytest.raises(TypeError, match=f'a parameter chain must.*{sentence}'):
    run_chain(chain, params, state, params, jnp.zeros(()))
  stats = covrl.TokenStats(logprobs=-jnp.ones((1, 2)), entropy=jnp.ones((1, 2)))
  with pytest.raises(TypeError, match=f'a token chain must.*{sentence}'):
    update_signal(chain, stats, state, stats)


def test_states_of_the_same_form_are_taken():
  check_state('a chain', jnp.zeros((), jnp.bfloat16), jnp.zeros(()))
  check_state(
    'a chain',
    {'n': COUNT + 1, 'k': jax.random.key(1)},
    {'n': 0, 'k': jax.random.key(0)},
  )


def test_chains_return_updates_and_state():
  for result in ({'w': 1.0}, None, (1, 2, 3)):
    with pytest.raises(TypeError, match='must return its updates and its next'):
      check_pair('a chain', result)


def test_the_chain_of_a_warm_start_keeps_the_form_of_its_state():
  policy, state = Policy(tiny(8)), COUNT
  chain = chain_of(state, lambda s: s + 0.5)
  params = policy.abstract_params()
  rows = jnp.ones((2, 8), jnp.int32)
  batch = SupervisedBatch(
    tokens=rows,
    targets=rows,
    loss_mask=rows > 0,
    positions=rows,
    segment_ids=rows,
  )
  before = SupervisedState(
    params=params,
    opt_state=state,
    step=COUNT,
    skipped_in_a_row=COUNT,
    skipped=COUNT,
  )
  with pytest.raises(TypeError, match='must keep the form of its state'):
    jax.eval_shape(make_sft_step(policy, chain), before, batch)


def test_a_second_moment_of_float16_that_overflows_is_not_finite():
  """Its parameter would never move again."""
  chain = optax.adam(1e-3)
  params = {'w': jnp.ones(2, jnp.float16)}
  for gradient, is_finite in ((10.0, True), (1e4, False)):
    gradients = {'w': jnp.full(2, gradient, jnp.float16)}
    _, _, finite = run_chain(
      chain, gradients, chain.init(params), params, jnp.zeros(())
    )
    assert bool(finite) is is_finite


def test_parameter_chains_get_the_loss():
  """Reduced by half at the second loss in a row that is no better."""
  chain = optax.chain(
    optax.sgd(1.0),
    optax.contrib.reduce_on_plateau(0.5, patience=1, accumulation_size=1),
  )
  params = {'w': jnp.zeros(())}
  state, moves = chain.init(params), []
  for loss in (3.0, 2.0, 2.0, 2.0):
    gradients = {'w': jnp.ones(())}
    updated, state, _ = run_chain(
      chain, gradients, state, params, jnp.asarray(loss)
    )
    moves.append(float(updated['w']))
  assert moves == [-1.0, -1.0, -0.5, -0.25]
