# SPDX-License-Identifier: Apache-2.0
"""Application of gradients by the parameter chain."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from covrl.types import Measurements, Scalar, TrainState


def apply_gradients(
  tx: optax.GradientTransformation,
  state: TrainState,
  gradients: PyTree,
  token_state: PyTree,
  measured: Measurements,
  has_tokens: Bool[Array, ''],
  loss: Scalar,
) -> tuple[TrainState, Scalar]:
  """Applies the gradients, or keeps the state except for `step`.

  It is kept if the loss, a gradient or an updated parameter is not finite, and if
  the batch has no token to train on: momentum and decay must not move parameters
  for nothing. The loss counts because a token chain may detach a token whose
  advantage or log-probability is not finite, which leaves no trace in gradients.

  Returns:
    The state, and 1 if all numbers are finite, else 0.
  """
  norm = optax.tree.norm(gradients)
  gradients = jax.tree.map(
    lambda g, p: g.astype(p.dtype), gradients, state.trainable
  )
  updates, opt_state = tx.update(gradients, state.opt_state, state.trainable)
  trainable = optax.apply_updates(state.trainable, updates)
  is_valid = jnp.isfinite(loss) | ~has_tokens
  finite = is_valid & jnp.isfinite(norm) & all_finite(trainable)
  applied = finite & has_tokens
  updated = (
    trainable,
    opt_state,
    token_state,
    measured,
  )
  kept = (
    state.trainable,
    state.opt_state,
    state.token_state,
    state.measured,
  )
  trainable, opt_state, token_state, measured = jax.tree.map(
    lambda new, old: jnp.where(applied, new, old), updated, kept
  )
  return (
    dataclasses.replace(
      state,
      trainable=trainable,
      opt_state=opt_state,
      token_state=token_state,
      step=state.step + 1,
      measured=measured,
    ),
    finite.astype(jnp.float32),
  )


def all_finite(tree: PyTree) -> Bool[Array, '']:
  """Whether every float of a tree of arrays is finite."""
  flags = [
    jnp.all(jnp.isfinite(leaf))
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)


def to_device(opt_state: PyTree) -> PyTree:
  """Copies an offloaded optimiser state from host to device memory."""
  return jax.tree.map(
    lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), opt_state
  )


def accumulator_dtype(array: Array) -> jnp.dtype:
  """The dtype in which gradients are summed: at least float32."""
  return jnp.promote_types(array.dtype, jnp.float32)
