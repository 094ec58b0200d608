# SPDX-License-Identifier: Apache-2.0
"""Training of a small transformer under an entropy controller, as one program.

The task: a prompt has two tokens a and b, a response six; its t-th token is
correct if it is (a + t · b) mod 16. The reward is the share of correct tokens.
Sampling, scoring, advantages and the trainer's own update (`make_train_step`, with
Adam) are compiled together, so that a run takes seconds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Key

import covrl
from covrl.models import Policy, tiny
from covrl.train import StepSettings, make_train_step
from covrl.train.forward import policy_stats, with_old_stats
from covrl.types import TokenBatch, TokenMoments, TrainState, UpdateMeasurements

# Numbers of tokens: of the vocabulary, of a prompt and of a response.
VOCABULARY, PROMPT, RESPONSE = 16, 2, 6
# Prompts of an iteration, responses per prompt, and updates per iteration.
PROMPTS, GROUP, UPDATES = 16, 8, 4
# Number of all prompts; the policy's entropy is measured on them.
ALL_PROMPTS = VOCABULARY * VOCABULARY
POLICY = Policy(tiny(vocab_size=VOCABULARY))
TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3, b2=0.95))


class Curves(NamedTuple):
  """Measurements before each iteration.

  Attributes:
    entropy: mean token entropy over all prompts, in nats.
    rollout_entropy: mean token entropy of the iteration's rollouts, in nats.
    reward: mean reward of the rollouts.
  """

  entropy: Float[Array, ' n']
  rollout_entropy: Float[Array, ' n']
  reward: Float[Array, ' n']


def sample(
  params: Any, prompts: Int[Array, 'S 2'], key: Key[Array, '']
) -> Int[Array, 'S 8']:
  """Prompts and sampled responses; each token takes a whole forward pass."""
  tokens = jnp.pad(prompts, ((0, 0), (0, RESPONSE)))

  def step(tokens: Array, index: Array) -> tuple[Array, None]:
    logits = POLICY.logits(params, tokens)
    logits = jnp.take(logits, PROMPT + index - 1, axis=1)
    sampled = jax.random.categorical(jax.random.fold_in(key, index), logits)
    return tokens.at[:, PROMPT + index].set(sampled), None

  return jax.lax.scan(step, tokens, jnp.arange(RESPONSE))[0]


def reward(tokens: Int[Array, 'S 8']) -> Float[Array, ' S']:
  """Share of correct tokens of each response."""
  steps = jnp.arange(1, RESPONSE + 1)
  correct = (tokens[:, :1] + steps * tokens[:, 1:2]) % VOCABULARY
  return jnp.mean(tokens[:, PROMPT:] == correct, axis=1)


def to_batch(tokens: Int[Array, 'S 8']) -> TokenBatch:
  """A training batch without advantages and statistics."""
  count, width = tokens.shape
  position = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), tokens.shape)
  loss_mask = (position >= PROMPT - 1) & (position < width - 1)
  zeros = jnp.zeros(tokens.shape)
  return TokenBatch(
    tokens=tokens,
    targets=jnp.roll(tokens, -1, axis=1),
    positions=position,
    segment_ids=jnp.ones_like(tokens),
    loss_mask=loss_mask,
    weights=loss_mask.astype(jnp.float32),
    advantages=zeros,
    old_logprobs=zeros,
    old_entropy=zeros,
    old_moments=TokenMoments(
      square=zeros, square_log=zeros, square_log_square=zeros
    ),
    sampler_logprobs=zeros,
    sequence_ids=jnp.broadcast_to(
      jnp.arange(count, dtype=jnp.int32)[:, None], tokens.shape
    ),
  )


def mean_entropy(params: Any, tokens: Int[Array, 'S 8']) -> Array:
  """Mean entropy of the responses' tokens."""
  batch = to_batch(tokens)
  stats, _ = policy_stats(POLICY, params, batch, 1.0, 0)
  return jnp.mean(stats.entropy, where=batch.loss_mask)


@functools.partial(jax.jit, static_argnums=(0, 1))
def train(
  token_tx: optax.GradientTransformation,
  iterations: int,
  seeds: Int[Array, ' k'],
) -> Curves:
  """Trains once per seed; the curves have the shape `[seeds, iterations]`."""
  loss = functools.partial(covrl.clipped_surrogate, low=0.2, high=0.2)
  update = make_train_step(
    POLICY, loss, token_tx, TX, StepSettings(max_length=RESPONSE)
  )
  all_prompts = jnp.stack(
    jnp.meshgrid(jnp.arange(VOCABULARY), jnp.arange(VOCABULARY)), -1
  ).reshape(ALL_PROMPTS, PROMPT)

  def iteration(
    state: TrainState, index: Array, key: Key[Array, '']
  ) -> tuple[TrainState, Curves]:
    keys = jax.random.split(jax.random.fold_in(key, index), 4)
    params = state.trainable
    entropy = mean_entropy(params, sample(params, all_prompts, keys[0]))
    prompts = jax.random.randint(keys[1], (PROMPTS, PROMPT), 0, VOCABULARY)
    tokens = sample(params, jnp.repeat(prompts, GROUP, axis=0), keys[2])
    rewards = reward(tokens)
    batch = to_batch(tokens)
    scored = policy_stats(POLICY, params, batch, 1.0, 0)
    advantages = covrl.group_relative(
      rewards, jnp.repeat(jnp.arange(PROMPTS), GROUP)
    )
    batch = dataclasses.replace(
      with_old_stats(batch, scored),
      advantages=advantages[:, None] * batch.loss_mask,
      sampler_logprobs=scored[0].logprobs,
    )
    order = jax.random.permutation(keys[3], len(tokens))
    mini_batches = jax.tree.map(
      lambda x: x[order].reshape(UPDATES, -1, x.shape[1]), batch
    )

    def step(
      state: TrainState, mini_batch: tuple[Array, TokenBatch]
    ) -> tuple[TrainState, None]:
      number, rows = mini_batch
      return update(state, rows, number == 0, key)[0], None

    state, _ = jax.lax.scan(step, state, (jnp.arange(UPDATES), mini_batches))
    rollout_entropy = jnp.mean(scored[0].entropy, where=batch.loss_mask)
    return state, Curves(entropy, rollout_entropy, jnp.mean(rewards))

  def run(seed: Array) -> Curves:
    key = jax.random.key(seed)
    params = POLICY.init(key)
    state = TrainState(
      trainable=params,
      frozen={},
      opt_state=TX.init(params),
      token_state=token_tx.init(covrl.TokenStats.template()),
      step=jnp.zeros((), jnp.int32),
      last_update=UpdateMeasurements.initial(),
    )
    return jax.lax.scan(
      lambda state, index: iteration(state, index, key),
      jax.tree.map(lambda leaf: jnp.asarray(leaf, leaf.dtype), state),
      jnp.arange(iterations),
    )[1]

  return jax.lax.map(run, seeds)
