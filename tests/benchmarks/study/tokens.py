# SPDX-License-Identifier: Apache-2.0
"""Vocabulary of the study's tasks, and the form of responses."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

# Tokens of a prompt and of a response.
PROMPT, RESPONSE = 4, 6
VOCABULARY = 24
# Padding, the end of a response, the last token of a prompt, and an unused
# position of a prompt.
PAD, END, ASK, NONE = range(4)
FIRST_SYMBOL = 4  # sixteen symbols: digits, or cells of a grid
# First token of a response: digits are copied forwards, or in reverse; the response
# quits, or a key follows.
FORWARD, REVERSE, QUIT, GO = range(20, 24)
SIDE = 4  # cells along each side of a grid

Rows = Int[np.ndarray, 'n R']
Prompts = Int[np.ndarray, 'n P']


def response(*tokens: int) -> list[int]:
  """A response with its end, padded."""
  padding = [PAD] * (RESPONSE - 1 - len(tokens))
  return [*tokens, END, *padding]


def equal(responses: Rows, expected: Rows) -> Float[np.ndarray, ' n']:
  """1 for each response that is `expected`, else 0."""
  return (responses == expected).all(axis=1).astype(np.float32)
