# SPDX-License-Identifier: Apache-2.0
"""A batch of an off-policy update, and the cotangents before and after a chain."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from covrl.entropy import update_signal
from covrl.types import TokenStats

ROWS, LENGTH = 8, 12


def make_batch():
  """Statistics and context with drift, a mask, and NaN off the mask."""
  rng = np.random.default_rng(0)
  shape = ROWS, LENGTH
  old = -rng.exponential(size=shape)
  mask = rng.random(shape) < 0.8
  arrays = {
    'logprobs': np.minimum(old + rng.normal(size=shape) * 0.3, -1e-3),
    'entropy': rng.uniform(0, 2, shape),
    'advantages': np.repeat(rng.normal(size=(ROWS, 1)), LENGTH, 1),
    'old_logprobs': old,
    'old_entropy': rng.uniform(0, 2, shape),
    'sampler_logprobs': old + rng.normal(size=shape) * 0.5,
    'ref_logprobs': old + rng.normal(size=shape) * 0.5,
  }
  arrays = {
    name: jnp.asarray(np.where(mask, x, np.nan), jnp.float32)
    for name, x in arrays.items()
  }
  stats = TokenStats(
    logprobs=arrays.pop('logprobs'), entropy=arrays.pop('entropy')
  )
  context = arrays | {
    'advantages': jnp.where(mask, arrays['advantages'], 0),
    'mask': jnp.asarray(mask),
    'weights': jnp.asarray(mask / mask.sum(), jnp.float32),
    'entropy': jnp.asarray(0.4),
    'step': jnp.asarray(0),
  }
  return stats, context


@functools.partial(jax.jit, static_argnames=('token_tx', 'loss'))
def cotangents(token_tx, loss, stats, context):
  """A loss's cotangents, before and after a chain."""
  (_, aux), signal = jax.value_and_grad(loss, has_aux=True)(stats, **context)
  state = token_tx.init(TokenStats.template())
  after, _ = update_signal(
    token_tx, signal, state, stats, **(context | aux.for_selection)
  )
  return signal, after


def as_numpy(batch):
  """Float64 copies with zeros off the mask."""
  stats, context = batch
  mask = np.asarray(context['mask'])
  arrays = context | {'logprobs': stats.logprobs, 'H': stats.entropy}
  return {
    name: np.where(mask, np.asarray(x, np.float64), 0)
    for name, x in arrays.items()
    if getattr(x, 'shape', ()) == mask.shape and name != 'mask'
  } | {'mask': mask}
