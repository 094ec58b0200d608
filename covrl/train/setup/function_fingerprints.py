# SPDX-License-Identifier: Apache-2.0
"""Fingerprints of what a recipe's functions return, stored in checkpoints.

A recipe's files and fields are part of a run's identity. A value that its functions
take from elsewhere, such as an environment variable, can differ between two starts
of a run, which is reported.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from covrl.data.fingerprints import text_fingerprint
from covrl.entropy.base import update_signal
from covrl.entropy.inspection import single_token
from covrl.rewards.reward import RewardPart
from covrl.run.checkpoint import Checkpoint
from covrl.run.consistency import library_versions
from covrl.train.algorithm import Algorithm
from covrl.train.apply import chain_update
from covrl.train.networks.estimator import CreditInputs
from covrl.train.networks.network import Network
from covrl.train.rollout_batch import token_advantages
from covrl.types import TokenBatch, TokenStats

# Entries of the context of a token chain that a loss computes.
_GIVEN_BY_LOSS = ('score_weight', 'clipped')
# Attributes of a reward that change no score.
_WITHOUT_EFFECT = ('example',)


def function_fingerprints(
  algorithm: Algorithm,
  warm_start_tx: optax.GradientTransformation | None,
  rewards: Sequence[RewardPart],
  rows: TokenBatch,
  params: PyTree,
  code: Mapping[str, str],
) -> dict[str, str]:
  """Returns fingerprints of what the functions of a recipe return, by their names.

  Functions of arrays are lowered on small inputs for a CPU without a mesh, and not
  computed: their programs depend on neither devices nor the length of the run. One
  that cannot be lowered there, or calls Python, has the fingerprint ''. Others
  begin with a digest of the libraries and the code, with which programs change.

  Args:
    algorithm: the functions and gradient transformations.
    warm_start_tx: the parameter chain of a warm start that is not finished.
    rewards: the rewards of the task.
    rows: rows of an iteration, arrays or shapes.
    params: shapes and dtypes of the policy's trainable parameters.
    code: see `covrl.train.setup.code.code_fingerprints`.
  """
  rows = dataclasses.replace(
    jax.tree.map(lambda leaf: _shape(leaf.shape, leaf.dtype), rows),
    network_targets={},
  )
  params = jax.tree.map(lambda leaf: _shape(leaf.shape, leaf.dtype), params)
  texts = {
    'loss': _loss_text(algorithm),
    'token_tx': _token_chain_text(algorithm.token_tx),
    'tx': _chain_text(algorithm.tx, params),
    'advantages': _lowered(
      token_advantages(algorithm.advantages),
      _shape(rows.tokens.shape[:1], jnp.float32),
      _shape(rows.tokens.shape[:1], jnp.int32),
      rows.loss_mask,
    ),
    'networks': _joined(
      text
      for name, network in sorted(algorithm.networks.items())
      for text in (name, *_network_texts(network, algorithm, rows, params))
    ),
    'estimator': _estimator_text(algorithm, rows),
    'rewards': _rewards_text(rewards),
  }
  if warm_start_tx is not None:
    texts['warm_start_tx'] = _chain_text(warm_start_tx, params)
  circumstances = text_fingerprint(
    json.dumps([library_versions(), dict(code)], sort_keys=True)
  )
  return {
    f'{name} of the recipe': ''
    if text is None
    else f'{circumstances} {text_fingerprint(name + text)}'
    for name, text in texts.items()
  }


def check_functions(
  fingerprints: Mapping[str, str],
  saved: Checkpoint | None,
  warn: Callable[[str], object],
) -> None:
  """Warns if functions of a recipe return others than when a run was saved.

  They are compared only with the same libraries and code; otherwise these are
  reported. Functions without a fingerprint cannot be compared, of which each start
  warns.

  Args:
    fingerprints: see `function_fingerprints`; and those of the scores of rewards, see
      `covrl.tasks.verify.check_scores`.
    saved: the checkpoint to resume from, whose inputs include the fingerprints of
      its run; `None` starts the run.
    warn: receives a sentence about the functions that differ, and one about those
      without a fingerprint.
  """
  if unknown := [
    n for n, fingerprint in fingerprints.items() if not fingerprint
  ]:
    warn(
      f'{", ".join(unknown)} cannot be compared when the run is resumed, because'
      ' the program calls Python or cannot be traced for a CPU without a mesh; a'
      ' change of what it reads outside of the configuration, such as an environment'
      ' variable, remains unnoticed'
    )
  saved_inputs = {} if saved is None else saved.metadata.get('inputs', {})
  changed = [
    name
    for name, fingerprint in fingerprints.items()
    if (before := saved_inputs.get(name))
    and fingerprint
    and before != fingerprint
    and before.split()[0] == fingerprint.split()[0]
  ]
  if changed:
    warn(
      f'{", ".join(changed)} has changed since the checkpoint was written, and the'
      " recipe's files and the fields that a resume may not change have not; it"
      ' reads another field, or something else such as an environment variable: the'
      ' resumed run may differ from an uninterrupted one'
    )


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
  """Returns an abstract array without a sharding."""
  return jax.ShapeDtypeStruct(shape, dtype)


def _lowered(function: Callable[..., Any], *arguments: PyTree) -> str | None:
  """Returns the program of a function on abstract arrays.

  `None` if it cannot be traced on them, or calls Python.
  """
  try:
    traced = jax.jit(function).trace(*arguments)
    text = traced.lower(lowering_platforms=('cpu',)).as_text()
  except Exception:
    # Functions of a recipe raise errors of any type.
    return None
  return None if 'callback' in text else text


def _joined(texts: Iterator[str | None]) -> str | None:
  """Joins texts; `None` if one of them is."""
  parts = [*texts]
  return None if None in parts else '\n'.join(map(str, parts))


def _loss_text(algorithm: Algorithm) -> str | None:
  """Returns the program of the loss and its gradient."""

  def run(stats: TokenStats, context: dict[str, Any]) -> PyTree:
    (value, aux), signal = jax.value_and_grad(algorithm.loss, has_aux=True)(
      stats, **context
    )
    return value, signal, aux.for_selection

  stats, context = jax.eval_shape(single_token)
  return _lowered(
    run, stats, {n: v for n, v in context.items() if n not in _GIVEN_BY_LOSS}
  )


def _token_chain_text(token_tx: optax.GradientTransformation) -> str | None:
  """Returns the program of a token chain's update."""

  def run(
    signal: TokenStats, state: PyTree, stats: TokenStats, context: Any
  ) -> PyTree:
    return update_signal(token_tx, signal, state, stats, **context)

  stats, context = jax.eval_shape(single_token)
  state = jax.eval_shape(lambda: token_tx.init(TokenStats.template()))
  return _lowered(run, stats, state, stats, context)


def _chain_text(tx: optax.GradientTransformation, params: PyTree) -> str | None:
  """Returns the program of a parameter chain's update."""
  try:
    state = jax.eval_shape(tx.init, params)
  except Exception:
    return None
  loss = _shape((), jnp.float32)
  update = functools.partial(chain_update, tx)
  return _lowered(update, params, state, params, loss)


def _network_texts(
  network: Network, algorithm: Algorithm, rows: TokenBatch, params: PyTree
) -> Iterator[str | None]:
  """Yields the programs and options of a network beside the policy."""
  per_token = _shape(rows.tokens.shape, jnp.float32)
  estimator = algorithm.estimator
  names = () if estimator is None else estimator.target_names
  targets = dict.fromkeys(names, per_token)
  rows = dataclasses.replace(rows, network_targets=targets)
  yield _lowered(
    jax.value_and_grad(network.loss, has_aux=True), per_token, rows
  )
  yield _chain_text(network.tx, params)
  yield f'{network.output} {network.weights} {network.update}'


def _estimator_text(algorithm: Algorithm, rows: TokenBatch) -> str | None:
  """Returns the programs of the estimator; empty without one."""
  estimator = algorithm.estimator
  if estimator is None:
    return ''
  sequences = rows.tokens.shape[:1]
  outputs: Any = dict.fromkeys(
    estimator.networks, _shape(rows.tokens.shape, jnp.float32)
  )
  inputs = CreditInputs(
    rows=rows,
    rewards=_shape(sequences, jnp.float32),
    group_ids=_shape(sequences, jnp.int32),
    update_ids=_shape(sequences, jnp.int32),
    outputs=outputs,
  )
  state = jax.eval_shape(estimator.init)
  texts = [_lowered(estimator.estimate, state, inputs)]
  if estimator.targets is not None:
    texts.append(_lowered(estimator.targets, inputs))
  return _joined(iter(texts))


def _rewards_text(rewards: Sequence[RewardPart]) -> str | None:
  """Returns the kinds and options of rewards; `None` if they have cycles."""
  try:
    return repr(
      _description([(type(reward), _options(reward)) for reward in rewards])
    )
  except RecursionError:
    return None


def _options(value: Any) -> dict[str, Any]:
  """Returns the public attributes of an object, without those of no effect."""
  return {
    name: attribute
    for name, attribute in getattr(value, '__dict__', {}).items()
    if not name.startswith('_') and name not in _WITHOUT_EFFECT
  }


def _description(value: Any) -> Any:
  """Returns a description of a value that is the same in every process.

  Of objects other than numbers, texts, arrays, collections, functions and
  dataclasses it has the type alone.
  """
  if value is None or isinstance(value, (bool, int, float, str, bytes)):
    return value
  if isinstance(value, (np.generic, np.ndarray, jax.Array)):
    return value.tolist()
  if isinstance(value, functools.partial):
    return _description((value.func, value.args, value.keywords))
  if isinstance(value, Mapping):
    return sorted(map(_description, value.items()), key=repr)
  if isinstance(value, (set, frozenset)):
    return sorted(map(_description, value), key=repr)
  if isinstance(value, (list, tuple)):
    return [*map(_description, value)]
  if not isinstance(value, type) and dataclasses.is_dataclass(value):
    return _description((type(value), _options(value)))
  named: Any = value if hasattr(value, '__qualname__') else type(value)
  return f'{getattr(named, "__module__", "")}:{named.__qualname__}'
