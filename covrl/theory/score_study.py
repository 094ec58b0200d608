# SPDX-License-Identifier: Apache-2.0
"""Experiment: entropy saved by detaching the top tokens of each score.

Three policies on the same kind of batch: a table of logits, a small network
with random features, and covrl's transformer. Two optimisers: plain gradient
ascent, and Adam with its preconditioner held fixed. Responses are sampled from
the policy; rewards are random and advantages group-relative, one per response,
as in the trainer.

The entropy saved is the mean entropy after the update with detached tokens,
minus that after the plain update, in units of η times the mean absolute effect
of a token (`jvp_score`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

import covrl
from covrl.entropy.jvp import jvp_score
from covrl.models import Policy, tiny
from covrl.statistics.reference import token_stats_from_logits
from covrl.theory.claim import Settings
from covrl.theory.evidence import Table
from covrl.theory.float64 import cached_in_float64

ROWS, LENGTH, VOCABULARY, GROUP = 48, 12, 32, 8
FRACTIONS = (0.01, 0.05, 0.2)
# Token scores: the published covariance over the batch and its absolute value, the
# state score (`state_score`), c* (`exact_score`), the decrease of the mean entropy
# (`jvp_score`), and random numbers.
SCORES = ('batch', '|batch|', 'state', 'exact', 'jvp', 'random')
POLICIES = ('table', 'MLP', 'transformer')
OPTIMISERS = ('SGD', 'Adam')
LARGEST_STEP = 1e-7  # in any parameter, so that the first order is accurate


class SavedEntropy(NamedTuple):
  """Entropy saved, and the effect of plain updates next to its prediction.

  Attributes:
    saved: entropy saved by score and fraction, mean over seeds.
    predicted: predicted −ΔH/η of the plain update, the mean of the JVP scores, by
      seed.
    actual: −ΔH/η of the plain update, by seed.
  """

  saved: Float[np.ndarray, 'S F']
  predicted: Float[np.ndarray, ' E']
  actual: Float[np.ndarray, ' E']


@cached_in_float64
def measure(settings: Settings, policy: str, optimiser: str) -> SavedEntropy:
  """Measures the entropy saved, for one policy and optimiser, with six seeds.

  A quick run has one seed.

  Raises:
    ValueError: there is no such policy or optimiser.
  """
  for name, allowed in ((policy, POLICIES), (optimiser, OPTIMISERS)):
    if name not in allowed:
      raise ValueError(
        f'policy and optimiser must be of {allowed}, got {name!r}'
      )
  seeds = range(settings.choose(6, 1))
  runs = [_measure(policy, optimiser == 'Adam', seed) for seed in seeds]
  saved, predicted, actual = zip(*runs, strict=True)
  return SavedEntropy(
    np.mean(saved, axis=0), np.array(predicted), np.array(actual)
  )


def studied_policies(settings: Settings) -> tuple[str, ...]:
  """Names of the policies; a quick run leaves the transformer out."""
  return POLICIES[:2] if settings.quick else POLICIES


def summary_table(settings: Settings) -> Table:
  """Table of the entropy saved, by policy, optimiser, fraction and score."""
  rows = []
  for policy in studied_policies(settings):
    for optimiser in OPTIMISERS:
      saved = measure(settings, policy, optimiser).saved
      for column, fraction in enumerate(FRACTIONS):
        numbers = [f'{saved[row, column]:.3f}' for row in range(len(SCORES))]
        rows.append(
          [f'{policy}, {optimiser}, top {100 * fraction:g} %', *numbers]
        )
  return Table(
    title='Entropy saved by detaching tokens, by score',
    header=('policy, optimiser and fraction', *SCORES),
    rows=rows,
    caption='In units of the mean absolute effect of a token; larger is better.',
  )


class Batch(NamedTuple):
  """Responses sampled from a policy.

  Attributes:
    inputs: the policy's input at each token: state, features or prefix.
    targets: the sampled tokens.
    advantages: group-relative advantages, constant along a row.
  """

  inputs: Array
  targets: Int[Array, 'B T']
  advantages: Float[Array, 'B T']


class Update(NamedTuple):
  """A plain update and the scores of its tokens.

  Attributes:
    preconditioner: diagonal of the preconditioner P, as a flat vector.
    learning_rate: η.
    effects: `jvp_score`, the decrease of the mean entropy by each token.
    scores: all scores in the order of `SCORES`.
  """

  preconditioner: Float[Array, ' n']
  learning_rate: Float[Array, '']
  effects: Float[Array, 'B T']
  scores: Float[Array, 'S B T']


def _measure(
  policy: str, adam: bool, seed: int
) -> tuple[Float[np.ndarray, 'S F'], float, float]:
  """Measures the fields of `SavedEntropy` for one seed."""
  params, batch = _initialise(policy, seed)
  update = _update(policy, params, batch, np.asarray(adam))
  fractions = np.asarray(FRACTIONS)
  selected = _select(update.scores, fractions)
  all_tokens = np.ones((1, ROWS, LENGTH), bool)
  attached = np.concatenate(
    [all_tokens, ~np.asarray(selected).reshape(-1, ROWS, LENGTH)]
  )
  before, after = _entropies(policy, params, batch, update, attached)
  effects, rate = np.asarray(update.effects), float(update.learning_rate)
  unit = rate * abs(effects).mean()
  saved = (np.asarray(after[1:]) - float(after[0])) / unit
  return (
    saved.reshape(len(SCORES), len(FRACTIONS)),
    float(effects.mean()),
    (float(before) - float(after[0])) / rate,
  )


@jax.jit
def _select(
  scores: Float[Array, 'S B T'], fractions: Float[Array, ' F']
) -> Bool[Array, 'S F B T']:
  """Masks of the top tokens of each score, for each fraction."""
  mask = jnp.ones(scores.shape[1:], bool)

  def select(score: Array, fraction: Array) -> Array:
    return covrl.select_top(score, mask, fraction=fraction)

  return jax.vmap(jax.vmap(select, (None, 0)), (0, None))(scores, fractions)


def _initialise(policy: str, seed: int) -> tuple[PyTree, Batch]:
  """A random policy, and responses sampled from it.

  Random numbers come from NumPy because that needs no compilation.
  """
  rng = np.random.default_rng(seed)
  params, inputs = _INITIALISERS[policy](rng)
  noise = rng.gumbel(size=(ROWS, LENGTH, VOCABULARY))
  return params, _sample_batch(
    policy, params, inputs, noise, rng.normal(size=ROWS)
  )


@functools.partial(jax.jit, static_argnums=0)
def _sample_batch(
  policy: str, params: PyTree, inputs: Array, noise: Array, rewards: Array
) -> Batch:
  """Responses and their group-relative advantages."""
  groups = jnp.repeat(jnp.arange(ROWS // GROUP), GROUP)
  advantages = covrl.group_relative(rewards, groups)[:, None]
  return Batch(
    inputs=inputs,
    targets=jnp.argmax(
      _LOGIT_FUNCTIONS[policy](params, inputs) + noise, axis=-1
    ),
    advantages=jnp.broadcast_to(advantages, (ROWS, LENGTH)),
  )


def _statistics(policy: str, params: PyTree, batch: Batch) -> covrl.TokenStats:
  """Token statistics of the batch under a policy."""
  logits = _LOGIT_FUNCTIONS[policy](params, batch.inputs)
  return token_stats_from_logits(logits, batch.targets)


def _gradient(
  policy: str, params: PyTree, batch: Batch, attached: Bool[Array, 'B T']
) -> Float[Array, ' n']:
  """Gradient of the mean of A log π over the batch.

  Args:
    policy: name of the policy.
    params: parameters of the policy.
    batch: the batch.
    attached: false for detached tokens.
  """

  def objective(params: PyTree) -> Array:
    logprobs = _statistics(policy, params, batch).logprobs
    return jnp.mean(jnp.where(attached, batch.advantages * logprobs, 0))

  return ravel_pytree(jax.grad(objective)(params))[0]


@functools.partial(jax.jit, static_argnums=0)
def _update(policy: str, params: PyTree, batch: Batch, adam: Array) -> Update:
  """The plain update and the scores of all tokens."""
  unravel = ravel_pytree(params)[1]
  mask = jnp.ones(batch.targets.shape, bool)
  plain = _gradient(policy, params, batch, mask)
  # Adam's 1/(√v + ε); v is the squared gradient, ε a tenth of its RMS.
  size = abs(plain) / jnp.sqrt(jnp.mean(plain**2))
  preconditioner = jnp.where(adam, 1 / (size + 0.1), 1.0)

  def precondition(gradient: PyTree) -> PyTree:
    return unravel(preconditioner * ravel_pytree(gradient)[0])

  effects = jvp_score(
    lambda params: _statistics(policy, params, batch),
    params,
    batch.advantages,
    mask,
    precondition=precondition,
  )
  logits = _LOGIT_FUNCTIONS[policy](params, batch.inputs)
  stats, moments = token_stats_from_logits(logits, batch.targets, moments=True)
  covariance = covrl.token_covariance(stats.logprobs, batch.advantages, mask)
  scores = (
    covariance,
    abs(covariance),
    covrl.entropy.state_score(stats, batch.advantages),
    covrl.exact_score(stats, moments, batch.advantages),
    effects,
    jnp.asarray(np.random.default_rng(5).random(mask.shape)),
  )
  return Update(
    preconditioner=preconditioner,
    learning_rate=LARGEST_STEP / jnp.max(abs(preconditioner * plain)),
    effects=effects,
    scores=jnp.stack(scores),
  )


@functools.partial(jax.jit, static_argnums=0)
def _entropies(
  policy: str,
  params: PyTree,
  batch: Batch,
  update: Update,
  attached: Bool[Array, 'N B T'],
) -> tuple[Float[Array, ''], Float[Array, ' N']]:
  """Mean entropy before the update, and after it for each mask of tokens."""
  flat, unravel = ravel_pytree(params)

  def after(attached: Array) -> Array:
    gradient = _gradient(policy, params, batch, attached)
    updated = flat + update.learning_rate * update.preconditioner * gradient
    return jnp.mean(_statistics(policy, unravel(updated), batch).entropy)

  before = jnp.mean(_statistics(policy, params, batch).entropy)
  return before, jax.lax.map(after, attached)


def _initialise_table(rng: np.random.Generator) -> tuple[PyTree, np.ndarray]:
  """A table of 48 states, one of which is the state of each token."""
  params = 2.5 * rng.normal(size=(48, VOCABULARY))
  states = rng.integers(0, 48, (ROWS, LENGTH))
  return params, states


def _initialise_network(rng: np.random.Generator) -> tuple[PyTree, np.ndarray]:
  """A network with 64 hidden units on sixteen random features per token."""
  params = (
    rng.normal(size=(16, 64)) / 4,
    rng.normal(size=(64, VOCABULARY)) / 2,
  )
  features = rng.normal(size=(ROWS, LENGTH, 16))
  return params, features


def _initialise_transformer(
  rng: np.random.Generator,
) -> tuple[PyTree, np.ndarray]:
  """covrl's tiny transformer on random token sequences."""
  params = _transformer_policy().init(jax.random.key(int(rng.integers(2**31))))
  tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
  return params, tokens


def _network_logits(params: PyTree, features: Array) -> Array:
  """Logits of the network with one hidden layer."""
  hidden, out = params
  return jnp.tanh(features @ hidden) @ out


@functools.cache
def _transformer_policy() -> Policy:
  """A transformer of two layers and width 32 in 64-bit floats."""
  return Policy(
    dataclasses.replace(
      tiny(VOCABULARY),
      dtype='float64',
      param_dtype='float64',
      tied_embeddings=False,
    )
  )


def _transformer_logits(params: PyTree, tokens: Array) -> Array:
  """Logits times 2, since a new transformer is nearly uniform."""
  return 2.0 * _transformer_policy().logits(params, tokens)


_LOGIT_FUNCTIONS: dict[str, Callable[[PyTree, Array], Array]] = {
  'table': lambda params, states: params[states],
  'MLP': _network_logits,
  'transformer': _transformer_logits,
}
_INITIALISERS: dict[
  str, Callable[[np.random.Generator], tuple[PyTree, np.ndarray]]
] = {
  'table': _initialise_table,
  'MLP': _initialise_network,
  'transformer': _initialise_transformer,
}
