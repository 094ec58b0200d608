# SPDX-License-Identifier: Apache-2.0
"""One update is one update: on any mesh, in any parts, in any layout."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import covrl
from covrl import sharding
from covrl.data import pack_rows
from covrl.entropy import (
  Selection,
  TokenMaskedState,
  add_divergence_penalty,
  top_score,
)
from covrl.entropy.chain import init_token_state
from covrl.models import Policy, tiny
from covrl.train.layout import abstract_opt_state, replicated_like, shardings
from covrl.train.step import (
  StepSettings,
  join_rows,
  make_train_step,
  policy_stats,
  split_rows,
)
from covrl.types import TokenBatch, TrainState

POLICY = Policy(tiny(vocab_size=16))
SEQUENCES, PROMPT, RESPONSE = 64, 4, 8
# Twice what a sequence takes, so that packed rows have the shape of padded ones.
WIDTH = 2 * (PROMPT + RESPONSE)

# Compiling for speed would cost more than the few steps that are made.
QUICK = {'xla_backend_optimization_level': 0}

# (mesh, micro-batches): every mesh and every number of parts, none alone.
PROGRAMS: list[tuple[tuple[int, ...], int]] = [
  ((8,), 1),
  ((4, 2), 2),
  ((2, 2, 2), 4),
  ((8,), 8),
]

# Coefficients and fractions are traced, so that all methods are one program.
METHODS = {
  'clip_cov': {'clipped': 0.04},
  'kl_cov': {'held': 0.04, 'beta': 1.0},
  'kl_cov with bonus': {'held': 0.04, 'beta': 1.0, 'bonus': 0.1},
  'everything': {'clipped': 0.02, 'held': 0.04, 'beta': 0.5, 'bonus': 0.1},
  'nothing': {},
}


def fingerprinted(selector):
  """A selector that also says, in `eligible`, which tokens it chose."""

  def select(stats, **context):
    chosen: Selection = selector(stats, **context)
    places = context['sequence_ids'] * 64 + context['positions'] + 1
    marks = jnp.where(chosen.mask, places * places, 0)
    return chosen._replace(eligible=jnp.sum(marks))

  return select


def kl_cov(held, beta, source):
  """`covrl.kl_cov`, its selector fingerprinted."""
  return covrl.token_masked(
    add_divergence_penalty(beta),
    fingerprinted(top_score(held, selection_source=source)),
  )


def make_token_tx(source):
  def everything(clipped, held, beta, bonus):
    return optax.chain(
      covrl.clip_cov(clipped, low=0.05),
      kl_cov(held, beta, 'old'),
      covrl.entropy_bonus(bonus),
    )

  def selecting(held, beta):
    return optax.chain(kl_cov(held, beta, 'current'))

  if source == 'current':
    return optax.inject_hyperparams(selecting)(held=0.01, beta=0.0)
  return optax.inject_hyperparams(everything)(
    clipped=0.01, held=0.01, beta=0.0, bonus=0.0
  )


# The first state is the gradient itself.
TX = optax.chain(optax.trace(decay=0.0), optax.adam(1e-2))


@functools.cache
def program(shape, micro_batches, source='old'):
  """A compiled update, its mesh, and where its state lies."""
  settings = StepSettings(
    temperature=0.8,
    micro_batches=micro_batches,
    weights='sequence-mean-token-mean',
    selection_source=source,
  )
  loss = functools.partial(covrl.clipped_surrogate, low=0.2, high=0.2)
  step = make_train_step(POLICY, loss, make_token_tx(source), TX, settings)
  mesh = sharding.make_mesh(shape)
  params = POLICY.abstract_params(mesh)
  places = jax.tree.map(
    lambda leaf: replicated_like(leaf, mesh),
    jax.eval_shape(functools.partial(fresh_state, source)),
  )
  places = shardings(
    dataclasses.replace(
      places,
      trainable=params,
      opt_state=abstract_opt_state(TX, params, mesh),
    )
  )
  run = jax.jit(
    step,
    out_shardings=(places, sharding.replicated(mesh)),
    compiler_options=QUICK,
  )
  return run, mesh, places


@functools.cache
def parameters():
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype),
    POLICY.abstract_params(),
  )


@functools.cache
def padded() -> TokenBatch:
  """Prompts padded on the left, responses on the right, as a rollout's rows."""
  rng = np.random.default_rng(1)
  begins = PROMPT - rng.integers(1, PROMPT + 1, SEQUENCES)
  ends = PROMPT + rng.integers(1, RESPONSE + 1, SEQUENCES)
  places = np.arange(WIDTH)
  real = (places >= begins[:, None]) & (places < ends[:, None])
  # Entry t speaks of token t + 1.
  loss_mask = real & (places >= PROMPT - 1) & (places < ends[:, None] - 1)
  tokens = rng.integers(0, 16, (SEQUENCES, WIDTH + 1))
  floats = np.zeros((SEQUENCES, WIDTH), np.float32)
  signs = rng.normal(size=(SEQUENCES, 1))
  arrays: dict[str, Any] = {
    'tokens': np.where(real, tokens[:, :-1], 0).astype(np.int32),
    'targets': np.where(real, tokens[:, 1:], 0).astype(np.int32),
    'positions': np.maximum(places - begins[:, None], 0).astype(np.int32),
    'segment_ids': real.astype(np.int32),
    'loss_mask': loss_mask,
    'weights': loss_mask.astype(np.float32),
    'advantages': np.where(loss_mask, signs, 0).astype(np.float32),
    'old_logprobs': floats,
    'old_entropy': floats,
    'sampler_logprobs': floats,
    'sequence_ids': np.broadcast_to(
      np.arange(SEQUENCES, dtype=np.int32)[:, None], real.shape
    ).copy(),
  }
  blank = TokenBatch(**arrays)
  score = jax.jit(
    lambda params, rows: policy_stats(POLICY, params, rows, 0.8),
    compiler_options=QUICK,
  )
  stats = jax.device_get(score(parameters(), blank))
  drift = rng.normal(0, 0.2, floats.shape)
  return dataclasses.replace(
    blank,
    old_logprobs=np.float32(np.minimum(stats.logprobs + drift, 0)),
    old_entropy=stats.entropy,
  )


def fresh_state(source='old', **hyperparameters) -> TrainState:
  token_state: Any = init_token_state(make_token_tx(source))
  given = {
    name: jnp.asarray(hyperparameters.get(name, 0.0), jnp.float32)
    for name in token_state.hyperparams
  }
  return TrainState(
    trainable=parameters(),
    frozen={},
    opt_state=TX.init(parameters()),
    token_state=token_state._replace(hyperparams=given),
    step=jnp.asarray(5, jnp.int32),
    log_ratio_noise=jnp.asarray(1e-6, jnp.float32),
  )


def update(shape, micro_batches, batch, state, *, first=False, source='old'):
  """The state after one update, and what the update says of itself."""
  step, mesh, places = program(shape, micro_batches, source)
  with jax.set_mesh(mesh):
    return jax.device_get(
      step(
        jax.device_put(state, places),
        sharding.shard_batch(batch, mesh),
        np.asarray(first),
        jax.random.key(3),
      )
    )


def run(shape, micro_batches, batch, *, first=False, source='old', **method):
  """One update of a fresh state."""
  state = fresh_state(source, **method)
  return update(shape, micro_batches, batch, state, first=first, source=source)


def gradients(state):
  return jax.tree.leaves(state.opt_state[0].trace)


def assert_same_update(got, wanted):
  """Equal to float32 rounding; what was selected, to the bit."""
  (state, readings), (expected, figures) = got, wanted
  for ours, theirs in zip(gradients(state), gradients(expected), strict=True):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * scale)
  assert_same_bits(state.token_state, expected.token_state)
  for name in ('selected', 'quota', 'threshold', 'tokens', 'skipped'):
    assert readings[name] == figures[name], name
  for name in figures:
    np.testing.assert_allclose(
      readings[name], figures[name], rtol=1e-4, atol=1e-5, err_msg=name
    )
  np.testing.assert_allclose(readings['loss'], figures['loss'], rtol=1e-5)


def assert_same_bits(got, wanted):
  for ours, theirs in zip(
    jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True
  ):
    assert ours.dtype == theirs.dtype
    assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()


def selected(state):
  """How many tokens KL-Cov chose, and which."""
  held = next(
    part
    for part in reversed(state.token_state.inner_state)
    if isinstance(part, TokenMaskedState)
  )
  return int(held.summary.selected), int(held.summary.eligible)


@pytest.mark.parametrize('method', METHODS)
def test_meshes_and_micro_batches_do_not_matter(method):
  options = METHODS[method]
  wanted = run(*PROGRAMS[0], padded(), **options)
  held, which = selected(wanted[0])
  total = int(padded().loss_mask.sum())
  assert wanted[1]['selected'] == int(total * options.get('clipped', 0))
  assert held == int(total * options.get('held', 0))
  assert (which != 0) == (held > 0)
  for shape, micro_batches in PROGRAMS[1:]:
    got = run(shape, micro_batches, padded(), **options)
    assert_same_update(got, wanted)
    assert selected(got[0]) == (held, which)


def test_methods_change_the_gradient():
  plain = gradients(run(*PROGRAMS[0], padded())[0])
  for method in ('clip_cov', 'kl_cov', 'kl_cov with bonus'):
    edited = gradients(run(*PROGRAMS[0], padded(), **METHODS[method])[0])
    change = max(
      np.abs(ours - theirs).max()
      for ours, theirs in zip(edited, plain, strict=True)
    )
    assert change > 1e-3, method


@pytest.mark.parametrize('method', ['everything', 'clip_cov'])
def test_the_order_of_rows_does_not_matter(method):
  order = np.random.default_rng(2).permutation(SEQUENCES)
  shuffled = jax.tree.map(lambda leaf: leaf[order], padded())
  options = METHODS[method]
  for shape, micro_batches in (PROGRAMS[0], PROGRAMS[2]):
    assert_same_update(
      run(shape, micro_batches, shuffled, **options),
      run(*PROGRAMS[0], padded(), **options),
    )


def test_packing_does_not_matter():
  packed = pack_rows(padded(), length=WIDTH, count=SEQUENCES)
  assert packed.segment_ids.max() > 2
  for method in ('everything', 'clip_cov'):
    assert_same_update(
      run(*PROGRAMS[0], packed, **METHODS[method]),
      run(*PROGRAMS[0], padded(), **METHODS[method]),
    )


def test_selecting_on_current_statistics_in_parts_equals_in_one():
  whole, parts = (
    run(shape, count, padded(), source='current', **METHODS['kl_cov'])
    for shape, count in (PROGRAMS[0], PROGRAMS[1])
  )
  assert selected(whole[0])[0] > 0
  assert_same_update(parts, whole)
  old = run(*PROGRAMS[0], padded(), **METHODS['kl_cov'])
  assert selected(whole[0])[1] != selected(old[0])[1]


@pytest.mark.parametrize('micro_batches', [1, 8])
def test_the_first_update_has_ratio_one_and_a_silent_penalty(micro_batches):
  plain = run((8,), micro_batches, padded(), first=True)
  state, readings = run(
    (8,), micro_batches, padded(), first=True, **METHODS['kl_cov']
  )
  assert selected(state)[0] > 0
  for name in ('log_ratio', 'log_ratio_abs', 'log_ratio_max', 'clip_fraction'):
    assert readings[name] == 0.0, name
  assert readings['penalty_share'] == 0.0
  assert_same_bits(gradients(state), gradients(plain[0]))
  # It measures how far the scoring program is off, for the dead zone.
  assert state.log_ratio_noise > 0.1
  later = run((8,), micro_batches, padded(), **METHODS['kl_cov'])
  assert later[1]['log_ratio_abs'] > 0.01
  assert later[1]['penalty_share'] > 0.01
  assert later[0].log_ratio_noise == np.float32(1e-6)


@pytest.mark.parametrize('micro_batches', [1, 8])
def test_the_chains_advance_once_per_update(micro_batches):
  state, _ = run((8,), micro_batches, padded(), **METHODS['everything'])
  clipped, held, _ = state.token_state.inner_state
  assert state.token_state.count == clipped.updates == held.updates == 1
  assert optax.tree.get(state.opt_state, 'count') == 1
  assert state.step == 6


@pytest.mark.parametrize('micro_batches', [1, 8])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
@pytest.mark.parametrize('where', ['advantages', 'trainable'])
def test_an_update_that_is_not_finite_is_skipped(micro_batches, bad, where):
  before = fresh_state(**METHODS['everything'])
  batch = padded()
  if where == 'advantages':
    row, place = np.argwhere(batch.loss_mask)[7]
    spoilt = batch.advantages.copy()
    spoilt[row, place] = bad
    batch = dataclasses.replace(batch, advantages=spoilt)
  else:
    spoilt = parameters()['embedding'].copy()
    spoilt[3, 3] = bad
    params = before.trainable | {'embedding': spoilt}
    before = dataclasses.replace(before, trainable=params)
  after, readings = update((8,), micro_batches, batch, before)
  assert readings['skipped'] == 1.0
  assert after.step == before.step + 1
  for name in ('trainable', 'opt_state', 'token_state'):
    assert_same_bits(getattr(after, name), getattr(before, name))
  if where == 'advantages':
    # As if it had never been: the next update starts from the same state.
    afresh = dataclasses.replace(before, step=before.step + 1)
    got, wanted = (
      update((8,), micro_batches, padded(), state) for state in (after, afresh)
    )
    assert got[1]['skipped'] == 0.0
    assert_same_bits(got, wanted)


def test_rows_are_split_strided_and_joined_again():
  rows = np.arange(12).reshape(6, 2)
  parts = split_rows({'rows': rows, 'scalar': np.asarray(7)}, 3)
  assert parts['rows'][0].tolist() == [[0, 1], [6, 7]]
  assert parts['scalar'].tolist() == [7, 7, 7]
  np.testing.assert_array_equal(join_rows(parts['rows']), rows)
