# SPDX-License-Identifier: Apache-2.0
"""Vocabulary of the study's tasks, and the form of responses."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

PROMPT, RESPONSE = 4, 6
VOCABULARY = 24
PAD, END, ASK, NONE = range(4)
FIRST_SYMBOL = 4  # sixteen symbols: digits, or cells of a grid
FORWARD, REVERSE, QUIT, GO = range(20, 24)
SIDE = 4

Rows = Int[np.ndarray, 'n R']
Prompts = Int[np.ndarray, 'n P']


def response(*tokens: int) -> list[int]:
  """A response with its end, padded."""
  padding = [PAD] * (RESPONSE - 1 - len(tokens))
  return [*tokens, END, *padding]


def equal(responses: Rows, wanted: Rows) -> Float[np.ndarray, ' n']:
  """1 for each response that is the wanted one, else 0."""
  return (responses == wanted).all(axis=1).astype(np.float32)
