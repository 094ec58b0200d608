# SPDX-License-Identifier: Apache-2.0
"""Losses and token chains whose gradients depend on the number of micro-batches."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from covrl.entropy import DecisionCache
from covrl.entropy.base import update_signal
from covrl.statistics import token_stats_from_logits
from covrl.train.algorithm import Algorithm
from covrl.train.forward import apply_token_weights
from covrl.train.microbatch import join_rows, split_rows
from covrl.train.networks.network import Network
from covrl.train.networks.step import checked_loss
from covrl.types import TokenBatch, TokenStats

# Statistics of the policy at some sequences, and the context of a loss.
Rows: TypeAlias = tuple[TokenStats, dict[str, Any]]
# Cotangents by name, of all rows together and of two micro-batches.
Gradients: TypeAlias = tuple[dict[str, PyTree], dict[str, PyTree]]

# Lengths of the sequences that are tried, and the vocabulary of their policy.
_LENGTHS, _VOCABULARY = (6, 3, 5, 2), 8
# Largest relative difference of gradients that counts as rounding.
_TOLERANCE = 1e-3


def micro_batch_warnings(
  algorithm: Algorithm, micro_batches: int
) -> Iterator[str]:
  """Yields a sentence for each gradient that depends on the number of micro-batches.

  Loss and token chain, and the losses of networks beside the policy, are computed on
  four random sequences, together and in two micro-batches with the decisions of the
  whole. A sentence also says what cannot be computed there. A chain that decides in
  each micro-batch where its `scope` says so yields none.

  Args:
    algorithm: the functions and transformations of the run.
    micro_batches: number of micro-batches of an update.
  """
  if micro_batches == 1:
    return
  setting = f'train.micro_batches = {micro_batches}'
  pair, reason = _computed(functools.partial(_gradients, algorithm))
  if pair is None:
    yield (
      'whether the gradient depends on the number of micro-batches'
      f' ({setting}) cannot be checked: {reason}'
    )
  elif _differ(pair, 'signal'):
    yield f"the recipe's loss {_other_gradient(setting)}"
  elif _differ(pair, 'edited'):
    yield (
      "the recipe's token chain has another result with"
      f' {setting} than with 1: it has a transform of all tokens together, such as'
      ' optax.clip_by_global_norm, which sees one micro-batch at a time'
    )
  target_names = (
    () if algorithm.estimator is None else algorithm.estimator.target_names
  )
  for name, network in algorithm.networks.items():
    pair, reason = _computed(
      functools.partial(_network_gradients, network, target_names)
    )
    if pair is None:
      yield (
        f'whether the gradient of the network {name!r} depends on the number of'
        f' micro-batches ({setting}) cannot be checked: {reason}'
      )
    elif _differ(pair, 'output'):
      yield f'the loss of the network {name!r} {_other_gradient(setting)}'


def _other_gradient(setting: str) -> str:
  """The end of the sentence about a loss."""
  return (
    f'has another gradient with {setting} than with 1: it is called on each'
    ' micro-batch, and the results are added. A loss must multiply by weights and'
    ' add, and not average over the tokens that it gets'
  )


def _computed(compute: Callable[[Rows], Gradients]) -> tuple[Any, str]:
  """Computes gradients on random sequences.

  Returns:
    Those of all rows together and of two micro-batches, or `None`; and the reason
    if they cannot be computed.
  """
  try:
    return jax.device_get(jax.jit(compute)(_random_rows())), ''
  except Exception as error:
    # Functions of a recipe raise errors of any type.
    reason = ' '.join(str(error).split())[:200]
    return None, reason or type(error).__name__


def _gradients(algorithm: Algorithm, rows: Rows) -> Gradients:
  """Cotangents after the loss and after the token chain.

  Returns:
    Those of all rows together, and of two micro-batches; without the token chain's
    where it decides in each micro-batch.
  """
  shared = {
    'step': jnp.zeros((), jnp.int32),
    'key': jax.random.key(0),
    'entropy': jnp.asarray(1.0),
    'entropy_change': jnp.asarray(0.0),
    'log_ratio_noise': jnp.asarray(1e-6),
  }
  state = algorithm.token_tx.init(TokenStats.template())

  def run(rows: Rows, cache: DecisionCache) -> dict[str, TokenStats]:
    stats, of_rows = rows
    context: Any = of_rows | shared
    (_, aux), signal = jax.value_and_grad(algorithm.loss, has_aux=True)(
      stats, **context
    )
    context |= aux.for_selection | {'decisions': cache}
    edited, _ = update_signal(
      algorithm.token_tx, signal, state, stats, **context
    )
    return {'signal': signal, 'edited': edited}

  cache = DecisionCache()
  whole = run(rows, cache)
  micro_batches = split_rows((rows, cache.decisions), 2)
  results = [
    run(part, DecisionCache(recorded))
    for part, recorded in (
      jax.tree.map(lambda leaf, index=index: leaf[index], micro_batches)
      for index in range(2)
    )
  ]
  parts = join_rows(jax.tree.map(lambda *each: jnp.stack(each), *results))
  if cache.micro_batch_decisions:
    del whole['edited'], parts['edited']
  return whole, parts


def _network_gradients(
  network: Network, target_names: Sequence[str], rows: Rows
) -> Gradients:
  """Cotangents of a network's output.

  Args:
    network: a network beside the policy.
    target_names: names of the entries of `TokenBatch.network_targets`.
    rows: random sequences.
  """
  stats, context = rows
  values = jax.random.uniform(
    jax.random.key(0), (1 + len(target_names), *stats.logprobs.shape)
  )
  batch = TokenBatch(
    tokens=context['positions'],
    targets=context['positions'],
    loss_mask=context['mask'],
    network_targets=dict(zip(target_names, values[1:], strict=True)),
    **{
      name: context[name]
      for name in TokenBatch.__dataclass_fields__
      if name in context
    },
  )
  batch = dataclasses.replace(batch, weights=jnp.ones_like(batch.weights))
  batch = apply_token_weights(batch, network.weights, max(_LENGTHS))
  output = stats.logprobs if network.output == 'logprobs' else values[0]

  def gradient(
    rows: tuple[Float[Array, 'B T'], TokenBatch],
  ) -> Float[Array, 'B T']:
    return jax.grad(lambda output: checked_loss(network, output, rows[1])[0])(
      rows[0]
    )

  parts = jax.lax.map(gradient, split_rows((output, batch), 2))
  return {'output': gradient((output, batch))}, {'output': join_rows(parts)}


def _random_rows() -> Rows:
  """Statistics and context of random sequences of different lengths."""
  rng = np.random.default_rng(0)
  rows, width = len(_LENGTHS), max(_LENGTHS)

  def normal(scale: float) -> jax.Array:
    return jnp.asarray(rng.normal(0, scale, (rows, width)), jnp.float32)

  logits = rng.normal(size=(rows, width, _VOCABULARY)).astype(np.float32)
  targets = jnp.asarray(rng.integers(0, _VOCABULARY, (rows, width)))
  stats, moments = token_stats_from_logits(
    jnp.asarray(logits), targets, moments=True
  )
  columns = jnp.broadcast_to(jnp.arange(width, dtype=jnp.int32), (rows, width))
  mask = columns < jnp.asarray(_LENGTHS)[:, None]
  old_logprobs = stats.logprobs + normal(0.05)
  return stats, {
    'advantages': normal(1.0),
    'old_logprobs': old_logprobs,
    'old_entropy': stats.entropy + normal(0.01),
    'old_moments': moments,
    'moments': moments,
    'mask': mask,
    'weights': mask.astype(jnp.float32) / sum(_LENGTHS),
    'segment_ids': mask.astype(jnp.int32),
    'sequence_ids': jnp.arange(rows, dtype=jnp.int32)[:, None] + 0 * columns,
    'positions': columns,
    'sampler_logprobs': old_logprobs + normal(0.05),
    'ref_logprobs': stats.logprobs + normal(0.2),
  }


def _differ(pair: Gradients, name: str) -> bool:
  """Whether cotangents of a name, if they are there, differ by more than rounding."""
  whole, parts = (jax.tree.leaves(each.get(name)) for each in pair)
  return any(
    bool(np.max(np.abs(a - b)) > _TOLERANCE * np.max(np.abs(a)))
    for a, b in zip(whole, parts, strict=True)
  )
