# SPDX-License-Identifier: Apache-2.0
"""The operations that a model itself asks for, by its shape.

Two per token and parameter that a matrix product multiplies (tables that are
looked up do not count, the unembedding does; of experts those that a token is
sent to), and four per pair of a query and a key that it may see, head and
feature; three times as much with the backward pass, which makes two products
of each. What is computed twice, or for padding's sake, is not in it.
"""

from __future__ import annotations

from covrl.models import ModelConfig


def of_update(config: ModelConfig, rows: int, width: int) -> float:
  """An optimiser update: 6 N tokens, and attention.

  Matrices that adapters stand beside have no derivative: 4 N tokens.

  >>> from covrl.models import tiny
  >>> of_update(tiny(16), 1, 2) == 3 * of_scoring(tiny(16), 1, 2)
  True
  """
  passes = 3 if config.lora is None else 2
  seen = rows * attention(config, width)
  return passes * _products(config, rows * width) + 3 * seen


def of_scoring(config: ModelConfig, rows: int, width: int) -> float:
  """A forward pass with the statistics of every token."""
  return _products(config, rows * width) + rows * attention(config, width)


def _products(config: ModelConfig, tokens: int) -> float:
  """Tokens through every matrix."""
  parameters = layer_parameters(config) * config.num_layers
  return 2.0 * tokens * (parameters + config.model_dim * config.vocab_size)


def of_prefill(config: ModelConfig, rows: int, width: int) -> float:
  """Prompts read, and one token drawn after each."""
  products = layer_parameters(config) * config.num_layers * width
  products += config.model_dim * config.vocab_size
  return 2.0 * rows * products + rows * attention(config, width)


def of_token(config: ModelConfig, rows: int, slots: int) -> float:
  """One more token of each row, which sees so many."""
  width = config.num_heads * config.head_dim
  windows = config.windows or (0,) * config.num_layers
  seen = sum(min(window or slots, slots) for window in windows)
  return _products(config, rows) + rows * 4.0 * width * seen


def layer_parameters(config: ModelConfig) -> int:
  """Numbers in the matrices of a block that a token meets."""
  dim, head = config.model_dim, config.head_dim
  heads = 2 * config.num_heads + 2 * config.num_kv_heads
  layers, router = 1, 0
  if config.experts is not None:
    layers, router = config.experts.per_token, dim * config.experts.count
  return dim * head * heads + 3 * dim * config.hidden_dim * layers + router


def attention(config: ModelConfig, length: int) -> float:
  """A row's products of queries and keys, and of shares and values."""
  windows = config.windows or (0,) * config.num_layers
  pairs = sum(visible_pairs(length, window) for window in windows)
  return 4.0 * config.num_heads * config.head_dim * pairs


def visible_pairs(length: int, window: int) -> int:
  """Queries and keys that see one another, in a row of one sequence.

  >>> visible_pairs(4, 0), visible_pairs(4, 2)
  (10, 7)
  """
  near = min(window or length, length)
  return near * (near + 1) // 2 + (length - near) * near
