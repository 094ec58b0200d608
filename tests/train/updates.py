# SPDX-License-Identifier: Apache-2.0
"""Single updates of a tiny policy, for any mesh, micro-batches and method."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fast_compilation import QUICK
from train.token_chains import MIN_P, make_token_tx

import covrl
from covrl.entropy import required_truncation
from covrl.models import Policy, tiny
from covrl.parallel import sharding
from covrl.statistics import Truncation
from covrl.train.forward import policy_stats
from covrl.train.state_sharding import (
  abstract_opt_state,
  replicated_like,
  shardings,
)
from covrl.train.step import StepSettings, make_train_step
from covrl.types import TokenBatch, TokenMoments, TrainState, UpdateMeasurements

POLICY = Policy(tiny(vocab_size=16))
SEQUENCES, PROMPT, RESPONSE = 64, 4, 8
# Twice the length of a sequence, so that packed rows are as wide as padded ones.
WIDTH = 2 * (PROMPT + RESPONSE)

# (mesh, micro-batches)
PROGRAMS: list[tuple[tuple[int, ...], int]] = [
  ((8,), 1),
  ((4, 2), 2),
  ((2, 2, 2), 4),
  ((8,), 8),
]

CLIPPED = functools.partial(covrl.clipped_surrogate, low=0.2, high=0.2)


def several_losses(stats, **context):
  """The mean of a clipped loss, VESPO and GSPO, so that all share a program."""
  value, aux = CLIPPED(stats, **context)
  others = covrl.losses.vespo(stats, **context)[0]
  others += covrl.gspo(stats, form='sequence', **context)[0]
  return (value + others) / 3, aux


# The first state is the gradient itself. Adam's default ε, 1e-8, would turn a
# gradient that is only rounding into a full step.
TX = optax.chain(optax.trace(decay=0.0), optax.adam(1e-2, eps=1e-5))


@functools.cache
def program(
  mesh_shape,
  micro_batches,
  chain='everything',
  offload=False,
  has_old_stats=True,
):
  """A compiled update, its mesh, and the shardings of its state."""
  settings = StepSettings(
    temperature=0.8,
    micro_batches=micro_batches,
    # With token sums and `gspo`, LUSPO.
    weights='sequence-mean-token-sum'
    if chain == 'composed'
    else 'sequence-mean-token-mean',
    has_old_stats=has_old_stats,
    offload_optimizer=offload,
  )
  token_tx = make_token_tx(chain)
  settings = dataclasses.replace(
    settings, truncation=required_truncation(token_tx)
  )
  loss = several_losses if chain == 'composed' else CLIPPED
  step = make_train_step(POLICY, loss, token_tx, TX, settings)
  mesh = sharding.make_mesh(mesh_shape)
  params = POLICY.abstract_params(mesh)
  abstract = jax.tree.map(
    lambda leaf: replicated_like(leaf, mesh),
    jax.eval_shape(functools.partial(fresh_state, chain)),
  )
  state_shardings = shardings(
    dataclasses.replace(
      abstract,
      trainable=params,
      opt_state=abstract_opt_state(TX, params, mesh, offload=offload),
    )
  )
  run = jax.jit(
    step,
    out_shardings=(state_shardings, sharding.replicated(mesh)),
    compiler_options=QUICK,
  )
  return run, mesh, state_shardings


@functools.cache
def parameters():
  """Random parameters of `POLICY`."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype),
    POLICY.abstract_params(),
  )


score = jax.jit(
  lambda params, rows: policy_stats(POLICY, params, rows, 0.8, 0),
  compiler_options=QUICK,
)


def padded_batch_stats(params):
  """Statistics of a policy on the padded rows."""
  return score(params, padded_batch())[0]


@functools.cache
def padded_batch() -> TokenBatch:
  """Prompts padded on the left, responses on the right, as a rollout's rows."""
  rng = np.random.default_rng(1)
  begins = PROMPT - rng.integers(1, PROMPT + 1, SEQUENCES)
  ends = PROMPT + rng.integers(1, RESPONSE + 1, SEQUENCES)
  columns = np.arange(WIDTH)
  is_token = (columns >= begins[:, None]) & (columns < ends[:, None])
  # Entry t describes token t + 1.
  loss_mask = is_token & (columns >= PROMPT - 1) & (columns < ends[:, None] - 1)
  tokens = rng.integers(0, 16, (SEQUENCES, WIDTH + 1))
  floats: Any = np.zeros((SEQUENCES, WIDTH), np.float32)
  row_advantages = rng.normal(size=(SEQUENCES, 1))
  arrays: dict[str, Any] = {
    'tokens': np.where(is_token, tokens[:, :-1], 0).astype(np.int32),
    'targets': np.where(is_token, tokens[:, 1:], 0).astype(np.int32),
    'positions': np.maximum(columns - begins[:, None], 0).astype(np.int32),
    'segment_ids': is_token.astype(np.int32),
    'loss_mask': loss_mask,
    'weights': loss_mask.astype(np.float32),
    'advantages': np.where(loss_mask, row_advantages, 0).astype(np.float32),
    'old_logprobs': floats,
    'old_entropy': floats,
    'old_moments': TokenMoments(
      square=floats, square_log=floats, square_log_square=floats
    ),
    'sampler_logprobs': floats,
    'sequence_ids': np.broadcast_to(
      np.arange(SEQUENCES, dtype=np.int32)[:, None], is_token.shape
    ).copy(),
  }
  batch_without_stats = TokenBatch(**arrays)
  stats, moments = jax.device_get(score(parameters(), batch_without_stats))
  drift = rng.normal(0, 0.2, floats.shape)
  return dataclasses.replace(
    batch_without_stats,
    old_logprobs=np.float32(np.minimum(stats.logprobs + drift, 0)),
    old_entropy=stats.entropy,
    old_moments=moments,
  )


@functools.cache
def off_policy_batch() -> TokenBatch:
  """The padded rows, sampled by another policy, with a proxy for Lp-Reg."""
  rng = np.random.default_rng(4)
  batch = padded_batch()
  shape = batch.old_logprobs.shape
  truncation = Truncation(min_p=MIN_P)
  _, moments = jax.jit(
    lambda params, rows: policy_stats(POLICY, params, rows, 0.8, 0, truncation),
    compiler_options=QUICK,
  )(parameters(), batch)
  # By sequence, so that some of them are rejected.
  spread = rng.uniform(0.05, 0.6, (SEQUENCES, 1))
  gap = np.float32(spread * rng.normal(size=shape))
  proxy, drift = (
    np.asarray(moments.filtered_logprobs),
    rng.normal(0, 0.3, shape),
  )
  ratio = np.float32(np.exp(rng.normal(0, 0.05, shape)))
  return dataclasses.replace(
    batch,
    sampler_logprobs=batch.old_logprobs - gap,
    old_entropy=batch.old_entropy * ratio,
    old_moments=dataclasses.replace(
      jax.device_get(moments), filtered_logprobs=np.float32(proxy + drift)
    ),
  )


def fresh_state(chain='everything', **hyperparameters) -> TrainState:
  """An initial state with the types of later ones, so that both share a program."""
  token_state: Any = make_token_tx(chain).init(covrl.TokenStats.template())
  all_hyperparameters = {
    name: jnp.asarray(hyperparameters.get(name, 0.0), jnp.float32)
    for name in token_state.hyperparams
  }
  state = TrainState(
    trainable=parameters(),
    frozen={},
    opt_state=TX.init(parameters()),
    token_state=token_state._replace(hyperparams=all_hyperparameters),
    step=jnp.asarray(5, jnp.int32),
    last_update=UpdateMeasurements.initial()._replace(
      log_ratio_noise=jnp.asarray(1e-6, jnp.float32)
    ),
  )
  return jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state)


def update(
  mesh_shape,
  micro_batches,
  batch,
  state,
  *,
  first=False,
  chain='everything',
  has_old_stats=True,
):
  """The state after one update, and its metrics."""
  step, mesh, state_shardings = program(
    mesh_shape, micro_batches, chain, has_old_stats=has_old_stats
  )
  with sharding.use_mesh(mesh, sharding.TRAIN_RULES):
    return jax.device_get(
      step(
        jax.device_put(state, state_shardings),
        sharding.shard_batch(batch, mesh),
        np.asarray(first),
        jax.random.key(3),
      )
    )


def run(
  mesh_shape,
  micro_batches,
  batch,
  *,
  first=False,
  chain='everything',
  **hyperparameters,
):
  """One update of an initial state, whose token chain has these hyperparameters."""
  state = fresh_state(chain, **hyperparameters)
  return update(
    mesh_shape, micro_batches, batch, state, first=first, chain=chain
  )


def assert_same_bits(actual, expected):
  for actual_leaf, expected_leaf in zip(
    jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
  ):
    assert actual_leaf.dtype == expected_leaf.dtype
    assert (
      np.asarray(actual_leaf).tobytes() == np.asarray(expected_leaf).tobytes()
    )
