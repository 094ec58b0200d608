# SPDX-License-Identifier: Apache-2.0
"""Training of one run of the study: warm start, iterations, exact measurements.

The updates are those of `covrl.train` (`make_train_step` with a recipe's loss and
token chain), with the same metrics. Sampling and rewards are local: whole programs
are shared by all runs of a process, so that a run takes seconds.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

import covrl
from covrl.models import ModelConfig, Policy
from covrl.statistics import token_stats
from covrl.train.forward import make_score_step, mean_entropy, with_old_stats
from covrl.train.step import StepSettings, make_train_step
from covrl.types import (
  TokenBatch,
  TokenMoments,
  TokenStats,
  TrainState,
  UpdateMeasurements,
)

from .tasks import StudyTask
from .tokens import END, PAD, PROMPT, RESPONSE, VOCABULARY
from .variants import Variant, VariantOptions

LENGTH = PROMPT + RESPONSE  # tokens per row
# Prompts of an iteration, responses per prompt, and updates per pass.
PROMPTS, GROUP, MINI_BATCHES = 16, 8, 2
SEQUENCES = PROMPTS * GROUP
SCORED_ROWS = 128  # rows that the scoring program takes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """Settings that all variants of a comparison share.

  Attributes:
    width: width of the policy; 32 has 22 thousand parameters, 384 three million.
    learning_rate: Adam's learning rate.
    passes: passes over a rollout, of two updates each.
  """

  width: int = 32
  learning_rate: float = 2e-3
  passes: int = 2


def policy_of(width: int) -> Policy:
  """The study's policy: two layers."""
  return Policy(
    ModelConfig(
      vocab_size=VOCABULARY,
      num_layers=2,
      model_dim=width,
      num_heads=2,
      num_kv_heads=2,
      head_dim=width // 2,
      hidden_dim=2 * width,
    )
  )


@functools.cache
def parameters_of(width: int) -> int:
  """Number of parameters of the study's policy."""
  shapes = jax.eval_shape(policy_of(width).init, jax.random.key(0))
  return sum(leaf.size for leaf in jax.tree.leaves(shapes))


@functools.cache
def _programs(width: int) -> dict[str, Any]:
  """Programs that do not depend on the variant."""
  policy = policy_of(width)
  positions = jnp.broadcast_to(jnp.arange(LENGTH), (SEQUENCES, LENGTH))

  def sample(params: PyTree, prompts: Any, key: Any) -> Any:
    """Prompts followed by sampled responses; `score` computes their statistics."""
    repeated_prompts = jnp.repeat(prompts, GROUP, axis=0)
    tokens = jnp.concatenate(
      [
        repeated_prompts,
        jnp.zeros((SEQUENCES, RESPONSE), repeated_prompts.dtype),
      ],
      axis=1,
    )

    def step(index: Any, carry: Any) -> Any:
      tokens, ended = carry
      hidden = policy.hidden(
        params,
        tokens,
        positions=positions,
        segment_ids=jnp.ones_like(tokens),
      )
      last_hidden = jax.lax.dynamic_index_in_dim(
        hidden, PROMPT - 1 + index, 1, keepdims=False
      )
      logits = policy.project(params, last_hidden)
      sampled = jax.random.categorical(jax.random.fold_in(key, index), logits)
      sampled = jnp.where(ended, PAD, sampled)
      tokens = tokens.at[:, PROMPT + index].set(sampled)
      return tokens, ended | (sampled == END)

    ended = jnp.zeros(SEQUENCES, bool)
    return jax.lax.fori_loop(0, RESPONSE, step, (tokens, ended))[0]

  def imitate(state: Any, tokens: Any) -> Any:
    """A supervised step; state is parameters and optimiser state."""
    params, opt_state = state
    batch = to_batch(tokens)

    def loss(params: PyTree) -> Any:
      hidden = policy.hidden(
        params,
        batch.tokens,
        positions=batch.positions,
        segment_ids=batch.segment_ids,
      )
      stats = token_stats(hidden, policy.unembedding(params), batch.targets)
      mask = batch.loss_mask
      return -jnp.sum(jnp.where(mask, stats.logprobs, 0)) / jnp.sum(mask)

    gradients = jax.grad(loss)(params)
    updates, opt_state = _imitation_tx(width).update(
      gradients, opt_state, params
    )
    return optax.apply_updates(params, updates), opt_state

  score = make_score_step(policy, 1.0, 1, PROMPT - 1)

  def rollout(params: PyTree, prompts: Any, key: Any) -> Any:
    """Responses with the policy's statistics, and their mean entropy."""
    tokens = sample(params, prompts, key)
    batch = to_batch(tokens)
    batch = with_old_stats(batch, score(params, batch))
    return tokens, batch, mean_entropy(batch, batch.old_entropy)

  def probabilities(params: PyTree, tokens: Any) -> Any:
    """Probabilities of whole responses."""
    batch = to_batch(tokens)
    stats, _ = score(params, batch)
    mask = batch.loss_mask
    return jnp.exp(jnp.sum(jnp.where(mask, stats.logprobs, 0), axis=1))

  return {
    'imitate': jax.jit(imitate, donate_argnums=0),
    'rollout': jax.jit(rollout),
    'probabilities': jax.jit(probabilities),
  }


def to_batch(tokens: Any) -> TokenBatch:
  """Rows of prompts and responses as training data without statistics."""
  count = tokens.shape[0]
  targets = jnp.pad(tokens[:, 1:], ((0, 0), (0, 1)))
  columns = jnp.arange(LENGTH)
  is_response = (columns >= PROMPT - 1) & (columns < LENGTH - 1)
  mask = is_response & (targets != PAD)
  zeros = jnp.zeros((count, LENGTH))
  return TokenBatch(
    tokens=tokens,
    targets=targets,
    positions=jnp.broadcast_to(columns, (count, LENGTH)),
    segment_ids=jnp.ones((count, LENGTH), jnp.int32),
    loss_mask=mask,
    weights=mask.astype(jnp.float32),
    advantages=zeros,
    old_logprobs=zeros,
    old_entropy=zeros,
    old_moments=TokenMoments(
      square=zeros, square_log=zeros, square_log_square=zeros
    ),
    sampler_logprobs=zeros,
    sequence_ids=jnp.broadcast_to(jnp.arange(count)[:, None], (count, LENGTH)),
  )


def _imitation_tx(width: int) -> optax.GradientTransformation:
  return optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(5e-3 * 32 / width)
  )


def _tx() -> optax.GradientTransformation:
  """The parameter chain; its learning rate is state."""
  return optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.inject_hyperparams(optax.adam)(learning_rate=1e-3, b2=0.95),
  )


@jax.jit
def _token_state(options: VariantOptions) -> Any:
  """Initial state of the token chain."""
  return options.token_tx().init(TokenStats.template())


@functools.cache
def _updates(width: int) -> Any:
  """The compiled program that makes all updates on a rollout, of every variant."""
  groups = jnp.repeat(jnp.arange(PROMPTS), GROUP)
  settings = StepSettings(first_column=PROMPT - 1, max_length=RESPONSE)

  def run(
    state: Any,
    batch: Any,
    rewards: Any,
    orders: Any,
    key: Any,
    options: VariantOptions,
  ) -> Any:
    step = make_train_step(
      policy_of(width), options.loss(), options.token_tx(), _tx(), settings
    )
    advantages = covrl.group_relative(rewards, groups)
    batch = dataclasses.replace(
      batch, advantages=jnp.where(batch.loss_mask, advantages[:, None], 0.0)
    )

    def update(state: Any, inputs: Any) -> Any:
      order, is_first = inputs
      mini_batch = jax.tree.map(lambda leaf: leaf[order], batch)
      return step(state, mini_batch, is_first, key)

    is_first = jnp.arange(len(orders)) == 0
    return jax.lax.scan(update, state, (orders, is_first))

  return jax.jit(run)


def warm_start(task: StudyTask, seed: int, width: int) -> PyTree:
  """Parameters after supervised training, the same for all variants of a seed."""
  rng = np.random.default_rng([seed, 1])
  params = policy_of(width).init(jax.random.key(seed))
  state = params, _imitation_tx(width).init(params)
  imitate = _programs(width)['imitate']
  for _ in range(task.warm_start):
    prompts, rows = task.demonstrate(rng, SEQUENCES)
    state = imitate(state, np.concatenate([prompts, rows], 1).astype(np.int32))
  return state[0]


def evaluate(
  task: StudyTask, params: PyTree, phase: int, width: int
) -> dict[str, float]:
  """The task's exact measurements."""
  prompts, rows = task.probes
  tokens = np.concatenate([prompts, rows], axis=1).astype(np.int32)
  count = len(tokens)
  padded = np.resize(tokens, (-(-count // SCORED_ROWS) * SCORED_ROWS, LENGTH))
  probabilities_of = _programs(width)['probabilities']
  probabilities = [
    probabilities_of(params, padded[i : i + SCORED_ROWS])
    for i in range(0, len(padded), SCORED_ROWS)
  ]
  return task.measure(np.concatenate(probabilities)[:count], phase)


def train(
  task: StudyTask, variant: Variant, seed: int, setting: Setting, params: PyTree
) -> list[dict[str, Any]]:
  """Trains; returns the lines of `metrics.jsonl`."""
  programs, update = _programs(setting.width), _updates(setting.width)
  iterations, tx = sum(task.phases), _tx()
  updates_per_iteration = setting.passes * MINI_BATCHES
  options = VariantOptions(*map(np.float32, variant.options))._replace(
    updates=np.float32(iterations * updates_per_iteration)
  )
  state = TrainState(
    trainable=jax.tree.map(jnp.copy, params),
    frozen={},
    opt_state=optax.tree.set(
      tx.init(params), learning_rate=jnp.asarray(setting.learning_rate)
    ),
    token_state=_token_state(options),
    step=jnp.zeros((), jnp.int32),
    last_update=UpdateMeasurements.initial(),
  )
  rng, key = np.random.default_rng([seed, 2]), jax.random.key(seed)
  lines: list[dict[str, Any]] = []
  phase_ends = np.cumsum(task.phases)
  for iteration in range(iterations + 1):
    phase = min(
      int(np.searchsorted(phase_ends, iteration, side='right')),
      len(phase_ends) - 1,
    )
    if iteration % task.evaluate_every == 0 or iteration in phase_ends:
      measurements = evaluate(task, state.trainable, phase, setting.width)
      lines.append(
        {'phase': 'eval', 'iteration': iteration, 'rule': phase} | measurements
      )
    if iteration == iterations:
      break
    prompts = task.draw(rng, PROMPTS).astype(np.int32)
    sample_key = jax.random.fold_in(key, iteration)
    tokens, batch, entropy = programs['rollout'](
      state.trainable, prompts, sample_key
    )
    rows = np.asarray(tokens)
    rewards = task.score(rows[:, :PROMPT], rows[:, PROMPT:], phase)
    orders = [rng.permutation(SEQUENCES) for _ in range(setting.passes)]
    state, metrics = update(
      state,
      batch,
      rewards.astype(np.float32),
      np.reshape(orders, (updates_per_iteration, -1)).astype(np.int32),
      key,
      options,
    )
    reward_range = np.ptp(rewards.reshape(PROMPTS, GROUP), axis=1)
    rollout = {
      'reward': float(rewards.mean()),
      'equal_reward_groups': float(np.mean(reward_range == 0)),
      'response_length': float((rows[:, PROMPT:] != PAD).sum(1).mean()),
      'end_fraction': float((rows == END).any(1).mean()),
      'rollout_entropy': float(entropy),
    }
    columns = {name: np.asarray(x).tolist() for name, x in metrics.items()}
    for index in range(updates_per_iteration):
      step = iteration * updates_per_iteration + index + 1
      update_metrics = {name: column[index] for name, column in columns.items()}
      position = {'phase': 'train', 'iteration': iteration, 'step': step}
      lines.append(position | rollout | update_metrics)
  return lines
