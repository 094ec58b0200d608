# SPDX-License-Identifier: Apache-2.0
"""The score study: which score's top k, detached, saves most entropy.

Three policies over the same kind of batch: a table of logits, a small network
of features, and covrl's own transformer. Two optimisers: plain gradient ascent
and Adam, whose preconditioner is held fixed. Responses are sampled from the
policy, for each state, input or prefix; rewards are random, advantages
group-relative: one number a response, as in the trainer.

'Saved' is how much less the mean entropy changes, in units of η times the mean
size of a token's true effect, `jvp_score`.
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
from covrl.theory.claims import Lab, Table

ROWS, LENGTH, VOCABULARY, GROUP = 48, 12, 32, 8
FRACTIONS = (0.01, 0.05, 0.2)
SCORES = ('batch', '|batch|', 'state', 'exact', 'jvp', 'random')
POLICIES = ('table', 'MLP', 'transformer')
OPTIMISERS = ('SGD', 'Adam')
STEP = 1e-7  # of the largest parameter: small, as first order wants


class Saved(NamedTuple):
  """Entropy saved, and how well the JVP foretold plain updates.

  Attributes:
    saved: by score and fraction, mean over seeds.
    predicted: mean of the JVP scores, by seed.
    actual: −ΔH/η of the plain update, by seed.
  """

  saved: Float[np.ndarray, 'S F']
  predicted: Float[np.ndarray, ' E']
  actual: Float[np.ndarray, ' E']


@functools.cache
def study(lab: Lab, policy: str, optimiser: str) -> Saved:
  """Of one policy and one optimiser, six seeds or one."""
  seeds = range(lab.size(6, 1))
  runs = [_measure(policy, optimiser == 'Adam', seed) for seed in seeds]
  saved, predicted, actual = zip(*runs, strict=True)
  return Saved(np.mean(saved, axis=0), np.array(predicted), np.array(actual))


def policies(lab: Lab) -> tuple[str, ...]:
  """Those that a lab studies; a quick one leaves the transformer out."""
  return POLICIES[:2] if lab.quick else POLICIES


def table(lab: Lab) -> Table:
  """Entropy saved by each score, for every policy, optimiser and fraction."""
  rows = []
  for policy in policies(lab):
    for optimiser in OPTIMISERS:
      saved = study(lab, policy, optimiser).saved
      for place, fraction in enumerate(FRACTIONS):
        numbers = [f'{saved[row, place]:.3f}' for row in range(len(SCORES))]
        rows.append(
          [f'{policy}, {optimiser}, top {100 * fraction:g} %', *numbers]
        )
  return Table(
    title='Which score saves entropy',
    header=('policy, optimiser and fraction', *SCORES),
    rows=rows,
    caption='Entropy saved by detaching the top tokens of each score, in units '
    'of the mean size of a token’s effect; larger is better.',
  )


class Batch(NamedTuple):
  """What a policy sampled.

  Attributes:
    inputs: what the policy sees of each token: state, features or tokens.
    targets: the tokens.
    advantages: group-relative, one number a row.
  """

  inputs: Array
  targets: Int[Array, 'B T']
  advantages: Float[Array, 'B T']


class Update(NamedTuple):
  """A plain update and what scores say of its tokens.

  Attributes:
    preconditioner: P, diagonal, in a flat vector.
    rate: η.
    effects: `jvp_score`: what each token takes from the mean entropy.
    scores: every score, in the order of `SCORES`.
  """

  preconditioner: Float[Array, ' n']
  rate: Float[Array, '']
  effects: Float[Array, 'B T']
  scores: Float[Array, 'S B T']


def _measure(
  policy: str, adam: bool, seed: int
) -> tuple[Float[np.ndarray, 'S F'], float, float]:
  """What `Saved` holds, of one batch."""
  params, batch = _sampled(policy, seed)
  update = _update(policy, params, batch, np.asarray(adam))
  fractions = np.asarray(FRACTIONS)
  chosen = _selected(update.scores, fractions)
  everything = np.ones((1, ROWS, LENGTH), bool)
  kept = np.concatenate(
    [everything, ~np.asarray(chosen).reshape(-1, ROWS, LENGTH)]
  )
  before, after = _entropies(policy, params, batch, update, kept)
  effects, rate = np.asarray(update.effects), float(update.rate)
  unit = rate * abs(effects).mean()
  saved = (np.asarray(after[1:]) - float(after[0])) / unit
  return (
    saved.reshape(len(SCORES), len(FRACTIONS)),
    float(effects.mean()),
    (float(before) - float(after[0])) / rate,
  )


@jax.jit
def _selected(
  scores: Float[Array, 'S B T'], fractions: Float[Array, ' F']
) -> Bool[Array, 'S F B T']:
  """The top tokens of each score, for each fraction."""
  mask = jnp.ones(scores.shape[1:], bool)

  def one(score: Array, fraction: Array) -> Array:
    return covrl.select_top(score, mask, fraction=fraction)

  return jax.vmap(jax.vmap(one, (None, 0)), (0, None))(scores, fractions)


def _sampled(policy: str, seed: int) -> tuple[PyTree, Batch]:
  """A policy and a batch of its own responses.

  Drawn by NumPy, which needs no compiler.
  """
  random = np.random.default_rng(seed)
  params, inputs = _MAKE[policy](random)
  noise = random.gumbel(size=(ROWS, LENGTH, VOCABULARY))
  return params, _drawn(policy, params, inputs, noise, random.normal(size=ROWS))


@functools.partial(jax.jit, static_argnums=0)
def _drawn(
  policy: str, params: PyTree, inputs: Array, noise: Array, rewards: Array
) -> Batch:
  """Responses, and the advantages that their rewards give them."""
  groups = jnp.repeat(jnp.arange(ROWS // GROUP), GROUP)
  each = covrl.group_relative(rewards, groups)[:, None]
  return Batch(
    inputs=inputs,
    targets=jnp.argmax(_LOGITS[policy](params, inputs) + noise, axis=-1),
    advantages=jnp.broadcast_to(each, (ROWS, LENGTH)),
  )


def _statistics(policy: str, params: PyTree, batch: Batch) -> covrl.TokenStats:
  logits = _LOGITS[policy](params, batch.inputs)
  return token_stats_from_logits(logits, batch.targets)


def _gradient(
  policy: str, params: PyTree, batch: Batch, kept: Bool[Array, 'B T']
) -> Float[Array, ' n']:
  """Of the mean of A log π over the batch, tokens not kept detached."""

  def gain(params: PyTree) -> Array:
    logprobs = _statistics(policy, params, batch).logprobs
    return jnp.mean(jnp.where(kept, batch.advantages * logprobs, 0))

  return ravel_pytree(jax.grad(gain)(params))[0]


@functools.partial(jax.jit, static_argnums=0)
def _update(policy: str, params: PyTree, batch: Batch, adam: Array) -> Update:
  """The plain update, and every token's scores."""
  unravel = ravel_pytree(params)[1]
  mask = jnp.ones(batch.targets.shape, bool)
  plain = _gradient(policy, params, batch, mask)
  # Adam's 1/(√v + ε) with v this gradient's square, ε a tenth of its size.
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
  logits = _LOGITS[policy](params, batch.inputs)
  stats, moments = token_stats_from_logits(logits, batch.targets, moments=True)
  covariance = covrl.token_covariance(stats.logprobs, batch.advantages, mask)
  scores = (
    covariance,
    abs(covariance),
    covrl.state_score(stats, batch.advantages),
    covrl.exact_score(stats, moments, batch.advantages),
    effects,
    jnp.asarray(np.random.default_rng(5).random(mask.shape)),
  )
  return Update(
    preconditioner=preconditioner,
    rate=STEP / jnp.max(abs(preconditioner * plain)),
    effects=effects,
    scores=jnp.stack(scores),
  )


@functools.partial(jax.jit, static_argnums=0)
def _entropies(
  policy: str,
  params: PyTree,
  batch: Batch,
  update: Update,
  kept: Bool[Array, 'N B T'],
) -> tuple[Float[Array, ''], Float[Array, ' N']]:
  """Mean entropy before, and after the update from each set of tokens."""
  flat, unravel = ravel_pytree(params)

  def after(kept: Array) -> Array:
    gradient = _gradient(policy, params, batch, kept)
    moved = flat + update.rate * update.preconditioner * gradient
    return jnp.mean(_statistics(policy, unravel(moved), batch).entropy)

  before = jnp.mean(_statistics(policy, params, batch).entropy)
  return before, jax.lax.map(after, kept)


def _make_table(random: np.random.Generator) -> tuple[PyTree, np.ndarray]:
  """Forty-eight states; each token is in one of them."""
  params = 2.5 * random.normal(size=(48, VOCABULARY))
  states = random.integers(0, 48, (ROWS, LENGTH))
  return params, states


def _make_network(random: np.random.Generator) -> tuple[PyTree, np.ndarray]:
  """Sixteen random features of each token, a hidden layer of 64."""
  params = (
    random.normal(size=(16, 64)) / 4,
    random.normal(size=(64, VOCABULARY)) / 2,
  )
  features = random.normal(size=(ROWS, LENGTH, 16))
  return params, features


def _make_transformer(random: np.random.Generator) -> tuple[PyTree, np.ndarray]:
  """covrl's tiny transformer, predicting after each prefix of random rows."""
  params = _policy().init(jax.random.key(int(random.integers(2**31))))
  tokens = random.integers(0, VOCABULARY, (ROWS, LENGTH))
  return params, tokens


def _network(params: PyTree, features: Array) -> Array:
  hidden, out = params
  return jnp.tanh(features @ hidden) @ out


@functools.cache
def _policy() -> Policy:
  """Two layers, width 32, in 64-bit floats."""
  return Policy(
    dataclasses.replace(
      tiny(VOCABULARY),
      dtype='float64',
      param_dtype='float64',
      tied_embeddings=False,
    )
  )


def _transformer(params: PyTree, tokens: Array) -> Array:
  """Sharpened: a fresh transformer is nearly uniform."""
  return 2.0 * _policy().logits(params, tokens)


_LOGITS: dict[str, Callable[[PyTree, Array], Array]] = {
  'table': lambda params, states: params[states],
  'MLP': _network,
  'transformer': _transformer,
}
_MAKE: dict[str, Callable[[np.random.Generator], tuple[PyTree, np.ndarray]]] = {
  'table': _make_table,
  'MLP': _make_network,
  'transformer': _make_transformer,
}
