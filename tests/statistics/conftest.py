# SPDX-License-Identifier: Apache-2.0
"""The statistics and their cotangents in float64 numpy, by their formulas."""

import numpy as np
import pytest

from covrl.statistics import stats


def reference(
  hidden, unembedding, targets, temperature=1.0, soft_cap=None, signal=None
):
  """Statistics, moments and, given cotangents (g, h), those of the inputs."""
  hidden = np.asarray(hidden).astype('f8')
  unembedding = np.asarray(unembedding).astype('f8')
  possible = ~np.any(unembedding == -np.inf, axis=0)
  unembedding = np.where(possible, unembedding, 0)
  temperature = np.broadcast_to(
    np.asarray(temperature).astype('f8'), targets.shape
  )[..., None]
  uncapped = hidden @ unembedding
  capped = (
    uncapped if soft_cap is None else soft_cap * np.tanh(uncapped / soft_cap)
  )
  scaled = np.where(possible, capped / temperature, -np.inf)
  peak = scaled.max(-1, keepdims=True)
  log_pi = scaled - peak - np.log(np.exp(scaled - peak).sum(-1, keepdims=True))
  pi, finite_log_pi = np.exp(log_pi), np.where(possible, log_pi, 0)
  is_target = np.eye(unembedding.shape[1])[targets]
  entropy = -(pi * finite_log_pi).sum(-1)
  result = {
    'logprobs': (np.where(is_target > 0, log_pi, 0)).sum(-1),
    'entropy': entropy,
    'square': (pi**2).sum(-1),
    'square_log': (pi**2 * finite_log_pi).sum(-1),
    'square_log_square': (pi**2 * finite_log_pi**2).sum(-1),
  }
  if signal is not None:
    g, h = (np.asarray(x).astype('f8')[..., None] for x in signal)
    cotangent = g * (is_target - pi) - h * pi * (
      finite_log_pi + entropy[..., None]
    )
    cotangent = np.where(possible, cotangent, 0) / temperature
    if soft_cap is not None:
      cotangent = cotangent * (1 - (capped / soft_cap) ** 2)
    flat = cotangent.reshape(-1, cotangent.shape[-1])
    result['hidden'] = cotangent @ unembedding.T
    result['unembedding'] = hidden.reshape(-1, hidden.shape[-1]).T @ flat
  return result


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
  """Several chunks for the vocabularies of these tests."""
  monkeypatch.setattr(stats, 'MIN_CHUNK_LOGITS', 0)


@pytest.fixture(name='reference', scope='session')
def reference_fixture():
  return reference
