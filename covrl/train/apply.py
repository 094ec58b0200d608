# SPDX-License-Identifier: Apache-2.0
"""Application of gradients by the parameter chain."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, PyTree

from covrl.chain_checks import check_pair, check_state
from covrl.types import Scalar, TrainState, UpdateMeasurements


def apply_gradients(
  tx: optax.GradientTransformation,
  state: TrainState,
  gradients: PyTree,
  token_state: PyTree,
  measurements: UpdateMeasurements,
  has_tokens: Bool[Array, ''],
  loss: Scalar,
) -> tuple[TrainState, Scalar]:
  """Applies the gradients, or keeps the state except for `step`.

  It is kept if the loss, a gradient or an updated parameter is not finite, and if
  the batch has no token to train on: momentum and decay alone must not move
  parameters. The loss counts because a token chain may detach a token whose
  advantage or log-probability is not finite, so that gradients are finite.

  Args:
    tx: the parameter chain.
    state: the training state before the update.
    gradients: gradients of the trainable parameters.
    token_state: state of the token chain after the update.
    measurements: measurements of the update, for the next one.
    has_tokens: whether the batch has a token to train on.
    loss: the loss.

  Returns:
    The state, and 1 if all numbers are finite, else 0.
  """
  norm = optax.tree.norm(gradients)
  gradients = jax.tree.map(
    lambda g, p: g.astype(p.dtype), gradients, state.trainable
  )
  trainable, opt_state, is_valid = run_chain(
    tx, gradients, state.opt_state, state.trainable, loss
  )
  finite = is_valid & jnp.isfinite(norm) & (jnp.isfinite(loss) | ~has_tokens)
  applied = finite & has_tokens
  updated = (
    trainable,
    opt_state,
    token_state,
    measurements,
  )
  unchanged = (
    state.trainable,
    state.opt_state,
    state.token_state,
    state.last_update,
  )
  trainable, opt_state, token_state, last_update = jax.tree.map(
    lambda new, old: jnp.where(applied, new, old), updated, unchanged
  )
  return (
    dataclasses.replace(
      state,
      trainable=trainable,
      opt_state=opt_state,
      token_state=token_state,
      step=state.step + 1,
      last_update=last_update,
    ),
    finite.astype(jnp.float32),
  )


def run_chain(
  tx: optax.GradientTransformation,
  gradients: PyTree,
  opt_state: PyTree,
  params: PyTree,
  loss: Scalar,
) -> tuple[PyTree, PyTree, Bool[Array, '']]:
  """Updates parameters by a parameter chain.

  Args:
    tx: the parameter chain.
    gradients: a gradient for each parameter.
    opt_state: the chain's state.
    params: the parameters.
    loss: the loss, which the chain gets as `value`, an argument that transformations
      such as `optax.contrib.reduce_on_plateau` take.

  Returns:
    The updated parameters, the chain's next state, and whether both are finite.

  Raises:
    TypeError: the chain returns updates or a state of another form.
  """
  name = 'a parameter chain'
  updates, next_state = check_pair(
    name, chain_update(tx, gradients, opt_state, params, loss)
  )
  check_state(name, next_state, opt_state)
  updated = apply_updates(params, updates)
  finite = all_finite(updated) & _stays_finite(opt_state, next_state)
  return updated, next_state, finite


def chain_update(
  tx: optax.GradientTransformation,
  gradients: PyTree,
  opt_state: PyTree,
  params: PyTree,
  loss: Scalar,
) -> Any:
  """Returns what a parameter chain returns; see `run_chain`."""
  update = optax.with_extra_args_support(tx).update
  return update(gradients, opt_state, params, value=loss)


def apply_updates(params: PyTree, updates: PyTree) -> PyTree:
  """Adds the updates of a parameter chain to parameters.

  Args:
    params: the parameters.
    updates: an update for each, of its shape.

  Raises:
    TypeError: an update is missing, is of another shape, which would be broadcast,
      or is not an array of floats.
  """
  params_with_paths = jax.tree_util.tree_flatten_with_path(params)[0]
  leaves, structure = jax.tree.flatten(updates)
  if structure != jax.tree.structure(params):
    raise TypeError(
      'a parameter chain must return one update per parameter, got'
      f' {structure!s:.80}'
    )
  for (path, param), update in zip(params_with_paths, leaves, strict=True):
    is_float = jnp.issubdtype(jnp.result_type(update), jnp.floating)
    if jnp.shape(update) != param.shape or not is_float:
      raise TypeError(
        'updates of a parameter chain must be floats of the shape of their'
        f' parameter, {jax.tree_util.keystr(path)} {param.shape}, got'
        f' {jnp.result_type(update)} {jnp.shape(update)}'
      )
  return optax.apply_updates(params, updates)


def all_finite(tree: PyTree) -> Bool[Array, '']:
  """Whether every float of a tree of arrays is finite."""
  flags = [
    jnp.all(jnp.isfinite(leaf))
    for leaf in jax.tree.leaves(tree)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
  ]
  return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)


def _stays_finite(before: PyTree, after: PyTree) -> Bool[Array, '']:
  """Whether no number of a narrow type in a chain's state has overflowed.

  A second moment of float16 that is infinite would keep its parameter where it is
  for ever. In wider types the norm of the gradient overflows first.

  Args:
    before: the state before an update, in which a number may be infinite, such as
      the best loss so far.
    after: the state after it, of the same form.
  """
  flags = [
    jnp.all(jnp.isfinite(new) | ~jnp.isfinite(old))
    for old, new in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
    if _is_narrow(old)
  ]
  return jnp.all(jnp.stack(flags)) if flags else jnp.asarray(True)


def _is_narrow(leaf: Any) -> bool:
  """Whether an array's dtype has a smaller range than float32."""
  dtype = jnp.result_type(leaf)
  is_float = jnp.issubdtype(dtype, jnp.floating)
  return is_float and bool(jnp.finfo(dtype).max < jnp.finfo(jnp.bfloat16).max)


def to_device(opt_state: PyTree) -> PyTree:
  """Copies an offloaded optimiser state from host to device memory."""
  return jax.tree.map(
    lambda leaf: jax.device_put(leaf, jax.memory.Space.Device), opt_state
  )


def accumulator_dtype(array: Array) -> jnp.dtype:
  """The dtype in which gradients are summed: at least float32."""
  return jnp.promote_types(array.dtype, jnp.float32)
