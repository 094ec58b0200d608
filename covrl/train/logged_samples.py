# SPDX-License-Identifier: Apache-2.0
"""Responses kept for the report, token by token."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from covrl.data import Tokenizer
from covrl.types import TokenBatch


def kept_samples(
  rows: TokenBatch,
  rewards: Float[np.ndarray, ' B'],
  selected: Bool[np.ndarray, 'B T'],
  covariance: Float[np.ndarray, 'B T'],
  tokenizer: Tokenizer,
  *,
  count: int,
) -> list[dict[str, Any]]:
  """Describes some responses of an update, those with selected tokens first.

  Args:
    rows: of the update, host arrays.
    rewards: of its sequences.
    selected: tokens that the token chain selects.
    covariance: of each token.
    tokenizer: to decode with.
    count: how many to keep.
  """
  mask = np.asarray(rows.loss_mask)
  marked = (np.asarray(selected) & mask).sum(axis=1)
  best = np.argsort(-marked, kind='stable')[:count]
  return [
    {
      'prompt': _prompt(rows, row, tokenizer),
      'tokens': [
        _token(tokenizer, token)
        for token in np.asarray(rows.targets)[row][mask[row]]
      ],
      'logprobs': _numbers(np.asarray(rows.old_logprobs)[row][mask[row]]),
      'covariance': _numbers(np.asarray(covariance)[row][mask[row]]),
      'selected': np.asarray(selected)[row][mask[row]].tolist(),
      'advantage': float(
        np.max(rows.advantages[row], where=mask[row], initial=0)
      )
      or float(np.min(rows.advantages[row], where=mask[row], initial=0)),
      'reward': float(rewards[row]),
    }
    for row in best
  ]


def _prompt(rows: TokenBatch, row: int, tokenizer: Tokenizer) -> str:
  real = np.asarray(rows.segment_ids)[row] > 0
  first = int(np.argmax(np.asarray(rows.loss_mask)[row]))
  tokens = np.asarray(rows.tokens)[row][: first + 1][real[: first + 1]]
  return tokenizer.decode(tokens.tolist())


def _token(tokenizer: Tokenizer, token: int) -> str:
  if int(token) in tokenizer.end_ids:
    return '<end>'
  return tokenizer.decode([int(token)]) or f'<{int(token)}>'


def _numbers(values: Float[np.ndarray, ' n']) -> list[float]:
  return [round(float(value), 5) for value in values]
