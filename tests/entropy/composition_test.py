# SPDX-License-Identifier: Apache-2.0
"""Token transforms in optax's own combinators, with schedules, under jit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl import TokenStats
from covrl.entropy import TokenMaskedState
from covrl.entropy.base import update_signal

SHAPE = (4, 12)
STEPS = 3

# All coefficients and fractions that may be schedules: a function from the value to
# the transform, and the values of the first steps.
SCHEDULED = {
  'kl_cov, coefficient': (
    lambda value: covrl.kl_cov(0.05, coefficient=value, minimum=2),
    (1.0, 0.5, 0.0),
  ),
  'kl_cov, fraction': (
    lambda value: covrl.kl_cov(fraction=value),
    (0.05, 0.03, 0.0),
  ),
  'clip_cov, fraction': (
    lambda value: covrl.clip_cov(fraction=value, low=-9.0, high=9.0),
    (0.0, 0.03, 0.05),
  ),
  'forking_tokens, fraction': (covrl.forking_tokens, (0.2, 0.5, 1.0)),
  'entropy_bonus, coefficient': (covrl.entropy_bonus, (0.0, 0.1, 0.2)),
  'add_divergence_penalty, coefficient': (
    lambda value: covrl.add_divergence_penalty(value, 'k3'),
    (0.3, 0.2, 0.1),
  ),
  'kl_to_reference, coefficient': (covrl.kl_to_reference, (1.0, 2.0, 3.0)),
  'sample_weights, positive': (
    lambda value: covrl.sample_weights(positive=value),
    (1.0, 0.5, 0.0),
  ),
  'sample_weights, negative': (
    lambda value: covrl.sample_weights(negative=value),
    (1.0, 0.5, 0.0),
  ),
  'repo, scale': (covrl.repo, (0.0, 0.1, 0.2)),
  'entropy_shaped, coefficient': (covrl.entropy_shaped, (0.4, 0.2, 0.0)),
}


@pytest.fixture(scope='module')
def batch():
  """Cotangent of the statistics (`signal`), statistics and context of a batch."""
  rng = np.random.default_rng(0)

  def normal(scale=1.0):
    return jnp.asarray(scale * rng.normal(size=SHAPE), jnp.float32)

  old = -jnp.abs(normal()) - 0.1
  stats = TokenStats(logprobs=old + normal(0.1), entropy=jnp.abs(normal()))
  mask = jnp.asarray(rng.random(SHAPE) < 0.9)
  context = {
    'advantages': jnp.repeat(normal()[:, :1], SHAPE[1], axis=1),
    'old_logprobs': old,
    'old_entropy': stats.entropy,
    'ref_logprobs': old + normal(0.2),
    'mask': mask,
    'weights': covrl.token_weights(mask),
    'entropy': jnp.mean(stats.entropy),
    'key': jax.random.key(0),
  }
  signal = TokenStats(logprobs=normal(0.01), entropy=normal(0.01))
  return signal, stats, context


def table_schedule(values):
  """A schedule with these values at steps 0, 1, 2."""
  table = jnp.asarray(values)
  return lambda step: table[step]


def injected(make, values):
  """The transform with its value as a hyperparameter that a schedule sets."""
  return optax.inject_hyperparams(lambda value: make(value))(
    value=table_schedule(values)
  )


def run(chains, batch):
  """All chains, side by side in one program, step after step."""
  signal, stats, context = batch

  @jax.jit
  def update(states, step):
    results = {
      name: update_signal(
        chain, signal, states[name], stats, **context, step=step
      )
      for name, chain in chains.items()
    }
    edited = {name: result[0] for name, result in results.items()}
    return edited, {name: result[1] for name, result in results.items()}

  states: dict[str, Any] = {
    name: chain.init(TokenStats.template()) for name, chain in chains.items()
  }
  edits = []
  for step in range(STEPS):
    edited, states = update(states, jnp.asarray(step))
    edits.append(edited)
  return edits, states


@pytest.fixture(scope='module')
def signals_with_constants(batch):
  """The updated signals, each step's value passed as a constant."""
  signal, stats, context = batch

  @jax.jit
  def update(values, step):
    edited = {}
    for name, (make, _) in SCHEDULED.items():
      chain = make(values[name])
      state = chain.init(TokenStats.template())
      edited[name], _ = update_signal(
        chain, signal, state, stats, **context, step=step
      )
    return edited

  return [
    update(
      {name: values[step] for name, (_, values) in SCHEDULED.items()},
      jnp.asarray(step),
    )
    for step in range(STEPS)
  ]


def check_equal(edits, expected):
  """Asserts equal edits, which differ between the first and last step."""
  for step in range(STEPS):
    for name in SCHEDULED:
      for actual, expected_leaf in zip(
        jax.tree.leaves(edits[step][name]),
        jax.tree.leaves(expected[step][name]),
        strict=True,
      ):
        np.testing.assert_allclose(
          actual, expected_leaf, rtol=1e-6, err_msg=name
        )
  # …and the values have an effect.
  for name in SCHEDULED:
    first, last = edits[0][name], edits[-1][name]
    assert any(
      bool((a != b).any())
      for a, b in zip(
        jax.tree.leaves(first), jax.tree.leaves(last), strict=True
      )
    ), name


def test_every_coefficient_and_fraction_takes_a_schedule(
  batch, signals_with_constants
):
  edits, _ = run(
    {
      name: make(table_schedule(values))
      for name, (make, values) in SCHEDULED.items()
    },
    batch,
  )
  check_equal(edits, signals_with_constants)


def test_every_coefficient_and_fraction_is_a_hyperparameter(
  batch, signals_with_constants
):
  edits, states = run(
    {
      name: injected(make, values) for name, (make, values) in SCHEDULED.items()
    },
    batch,
  )
  check_equal(edits, signals_with_constants)
  for name, (_, values) in SCHEDULED.items():
    read = states[name].hyperparams['value']
    np.testing.assert_allclose(read, values[-1], rtol=1e-6)


def test_chains_in_any_nesting_apply_their_transforms_in_order(batch):
  """chain, named_chain and chains of chains do one after the other."""
  signal, stats, context = batch

  def transforms():
    return covrl.kl_cov(0.05), covrl.entropy_bonus(0.1), optax.scale(2.0)

  first, second, third = transforms()
  chains = {
    'chain': optax.chain(*transforms()),
    'named_chain': optax.named_chain(
      ('kl_cov', first), ('bonus', second), ('twice', third)
    ),
    'nested': optax.chain(optax.chain(first, second), optax.chain(third)),
  }
  edits, states = run(chains, batch)

  expected = signal
  for transform in transforms():
    expected, _ = jax.jit(
      lambda signal, transform=transform: update_signal(
        transform,
        signal,
        transform.init(TokenStats.template()),
        stats,
        **context,
        step=jnp.asarray(0),
      )
    )(expected)
  for name in chains:
    np.testing.assert_allclose(
      edits[0][name].logprobs, expected.logprobs, rtol=1e-6
    )
    np.testing.assert_allclose(
      edits[0][name].entropy, expected.entropy, rtol=1e-6
    )
  assert isinstance(states['named_chain']['kl_cov'], TokenMaskedState)
  assert int(states['named_chain']['kl_cov'].updates) == STEPS


def test_optax_tree_gets_and_sets_values_of_the_state(batch):
  """optax.tree.get finds coefficients, summaries and snapshots."""
  tx = optax.named_chain(
    ('kl_cov', covrl.kl_cov(0.05, table_schedule((1.0, 0.5, 0.25)))),
    ('norm', optax.snapshot('signal_norm', optax.tree.norm)),
  )
  edits, states = run({'tx': tx}, batch)
  state = states['tx']
  assert float(optax.tree.get(state, 'coefficient')) == 0.25
  summary = optax.tree.get(state, 'summary')
  assert int(summary.selected) == int(summary.quota) == 2
  assert int(optax.tree.get(state, 'selected')) == 2
  np.testing.assert_allclose(
    optax.tree.get(state, 'signal_norm'),
    optax.tree.norm(edits[-1]['tx']),
    rtol=1e-6,
  )
  # …and set, by hand, between steps.
  injected_tx = optax.inject_hyperparams(covrl.entropy_bonus)(coefficient=0.1)
  state = optax.tree.set(
    injected_tx.init(TokenStats.template()), coefficient=0.7
  )
  signal, stats, context = batch
  zero_signal = jax.tree.map(jnp.zeros_like, signal)
  edited, _ = jax.jit(
    lambda state: update_signal(
      injected_tx, zero_signal, state, stats, **context
    )
  )(state)
  np.testing.assert_allclose(
    edited.entropy, -0.7 * context['weights'], rtol=1e-6
  )


def test_optax_transformations_change_the_selected_tokens_only(batch):
  """Transformations of gradients, applied to some tokens only."""
  signal, _, _ = batch
  chosen = jnp.zeros(SHAPE, bool).at[1, 3:7].set(True)
  halved = covrl.token_masked(
    optax.chain(optax.scale(0.5), optax.clip(2e-3)), lambda stats, **_: chosen
  )
  edits, _ = run({'halved': halved}, batch)
  for edited, before in (
    (edits[0]['halved'].logprobs, signal.logprobs),
    (edits[0]['halved'].entropy, signal.entropy),
  ):
    expected = np.where(chosen, np.clip(before / 2, -2e-3, 2e-3), before)
    np.testing.assert_allclose(edited, expected, rtol=1e-6)


def test_as_loss_has_the_gradient_of_update_signal(batch):
  """The gradient of a network is that of backpropagating the signal, at each step."""
  _, stats, context = batch
  tx = optax.chain(
    covrl.kl_cov(0.05, table_schedule((1.0, 0.5, 0.25)), minimum=1),
    covrl.entropy_bonus(table_schedule((0.0, 0.1, 0.2))),
  )
  loss = covrl.as_loss(covrl.clipped_surrogate, tx)

  def network(params):
    return TokenStats(
      logprobs=stats.logprobs + jnp.tanh(params['w']),
      entropy=stats.entropy * params['b'],
    )

  @jax.jit
  def ordinary(params, token_state, step):
    return jax.value_and_grad(
      lambda params: loss(network(params), token_state, **context, step=step),
      has_aux=True,
    )(params)

  @jax.jit
  def explicit(params, token_state, step):
    current_stats, pull_back = jax.vjp(network, params)
    (value, aux), signal = jax.value_and_grad(
      covrl.clipped_surrogate, has_aux=True
    )(current_stats, **context)
    signal, token_state = update_signal(
      tx,
      signal,
      token_state,
      current_stats,
      **context,
      **aux.for_selection,
      step=step,
    )
    return (value, token_state), pull_back(signal)[0]

  params = {'w': 0.1 * jnp.ones(SHAPE), 'b': jnp.asarray(1.1)}
  states = [tx.init(TokenStats.template())] * 2
  for step in range(STEPS):
    (value, states[0]), gradient = ordinary(params, states[0], step)
    (expected, states[1]), explicit_gradient = explicit(params, states[1], step)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    for name in params:
      np.testing.assert_allclose(
        gradient[name], explicit_gradient[name], rtol=1e-5, atol=1e-9
      )
    for actual_leaf, expected_leaf in zip(
      *map(jax.tree.leaves, states), strict=True
    ):
      np.testing.assert_allclose(actual_leaf, expected_leaf, rtol=1e-6)
    assert bool(gradient['b'] != 0) == (step > 0)
