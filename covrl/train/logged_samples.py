# SPDX-License-Identifier: Apache-2.0
"""Per-token records of some responses, for the report."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from covrl.config import Config
from covrl.data import Tokenizer
from covrl.entropy import (
  Selection,
  explain,
  required_truncation,
  token_covariance,
)
from covrl.train.algorithm import Algorithm
from covrl.train.forward import (
  apply_token_weights,
  mean_entropy,
  old_stats,
  row_context,
)
from covrl.types import TokenBatch, TokenContext


def sample_records(
  rows: TokenBatch,
  rewards: Float[np.ndarray, ' B'],
  selected: Bool[np.ndarray, 'B T'],
  covariance: Float[np.ndarray, 'B T'],
  tokenizer: Tokenizer,
  *,
  count: int,
) -> list[dict[str, Any]]:
  """Returns records of the responses with the most selected tokens.

  Args:
    rows: the rows of an update, host arrays.
    rewards: total reward of each sequence.
    selected: mask of the tokens that the token chain selects.
    covariance: covariance score of each token.
    tokenizer: decodes the tokens.
    count: number of responses.
  """
  mask = np.asarray(rows.loss_mask)
  counts = (np.asarray(selected) & mask).sum(axis=1)
  most_selected = np.argsort(-counts, kind='stable')[:count]
  return [
    {
      'prompt': _prompt(rows, row, tokenizer),
      'tokens': [
        _token(tokenizer, token)
        for token in np.asarray(rows.targets)[row][mask[row]]
      ],
      'logprobs': _rounded(np.asarray(rows.old_logprobs)[row][mask[row]]),
      'covariance': _rounded(np.asarray(covariance)[row][mask[row]]),
      'selected': np.asarray(selected)[row][mask[row]].tolist(),
      'advantage': float(
        np.max(rows.advantages[row], where=mask[row], initial=0)
      )
      or float(np.min(rows.advantages[row], where=mask[row], initial=0)),
      'reward': float(rewards[row]),
    }
    for row in most_selected
  ]


def _prompt(rows: TokenBatch, row: int, tokenizer: Tokenizer) -> str:
  is_token = np.asarray(rows.segment_ids)[row] > 0
  first = int(np.argmax(np.asarray(rows.loss_mask)[row]))
  tokens = np.asarray(rows.tokens)[row][: first + 1][is_token[: first + 1]]
  return tokenizer.decode(tokens.tolist())


def _token(tokenizer: Tokenizer, token: int) -> str:
  if int(token) in tokenizer.end_ids:
    return '<end>'
  return tokenizer.decode([int(token)]) or f'<{int(token)}>'


def _rounded(values: Float[np.ndarray, ' n']) -> list[float]:
  return [round(float(value), 5) for value in values]


def make_explain_selection(
  algorithm: Algorithm, config: Config
) -> Callable[..., tuple[Selection, Array]]:
  """Builds the program that shows which tokens an update selects.

  Args:
    algorithm: the loss and the token chain.
    config: the run's configuration.

  Returns:
    `(token_state, step, rows, key) -> (first selection, covariances [B, T])`,
    of rows with statistics from before the rollout's first update.
  """

  truncation = required_truncation(algorithm.token_tx)

  def explain_selection(
    token_state: PyTree, step: Array, rows: TokenBatch, key: Key[Array, '']
  ) -> tuple[Selection, Array]:
    rows = apply_token_weights(
      rows, config.train.weights, config.rollout.max_response_length
    )
    stats, moments = old_stats(rows, truncation)
    context = row_context(rows, stats, moments, jnp.asarray(True))
    context |= TokenContext(
      score_weight=rows.advantages,
      step=step,
      key=key,
      entropy=mean_entropy(rows, rows.old_entropy),
    )
    covariance = token_covariance(
      rows.old_logprobs, rows.advantages, rows.loss_mask
    )
    signal, _ = jax.grad(algorithm.loss, has_aux=True)(stats, **context)
    selections = explain(
      algorithm.token_tx,
      stats,
      signal=signal,
      token_state=token_state,
      **context,
    )
    empty = Selection.of_mask(jnp.zeros_like(rows.loss_mask))
    return (selections[0] if selections else empty), covariance

  return explain_selection
