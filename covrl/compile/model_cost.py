# SPDX-License-Identifier: Apache-2.0
"""FLOPs and KV-cache size that a model requires, from its shape.

A forward pass takes 2 FLOPs per token and parameter of a matrix (the
unembedding counts, the embedding table does not; of experts, those that a token
is routed to) and 4 per visible query–key pair, head and feature. A backward
pass takes twice as much again. Recomputation and padding are not included.
"""

from __future__ import annotations

import jax.numpy as jnp

from covrl.models import ModelConfig


def update_flops(config: ModelConfig, rows: int, width: int) -> float:
  """Returns the FLOPs of an optimiser update: 6 N tokens, plus attention.

  With adapters, the frozen matrices have no weight gradient: 4 N tokens.

  >>> from covrl.models import tiny
  >>> update_flops(tiny(16), 1, 2) == 3 * scoring_flops(tiny(16), 1, 2)
  True
  """
  passes = 3 if config.lora is None else 2
  attention = rows * attention_flops(config, width)
  return passes * _matmul_flops(config, rows * width) + 3 * attention


def scoring_flops(config: ModelConfig, rows: int, width: int) -> float:
  """Returns the FLOPs of a forward pass with statistics of every token."""
  return _matmul_flops(config, rows * width) + rows * attention_flops(
    config, width
  )


def _matmul_flops(config: ModelConfig, tokens: int) -> float:
  """Returns the FLOPs of all matrix products of a forward pass."""
  parameters = layer_parameters(config) * config.num_layers
  outputs = 1 if config.value_head else config.vocab_size
  return 2.0 * tokens * (parameters + config.model_dim * outputs)


def prefill_flops(config: ModelConfig, rows: int, width: int) -> float:
  """Returns the FLOPs of a prefill with the logits of the last token only."""
  multiplications = layer_parameters(config) * config.num_layers * width
  multiplications += config.model_dim * config.vocab_size
  return 2.0 * rows * multiplications + rows * attention_flops(config, width)


def decode_flops(config: ModelConfig, rows: int, length: int) -> float:
  """Returns the FLOPs of one decoding step that attends to `length` tokens."""
  width = config.num_heads * config.head_dim
  windows = config.windows or (0,) * config.num_layers
  visible_tokens = sum(min(window or length, length) for window in windows)
  return _matmul_flops(config, rows) + rows * 4.0 * width * visible_tokens


def layer_parameters(config: ModelConfig) -> int:
  """Returns the parameters of a layer's matrices that one token uses."""
  dim, head_dim = config.model_dim, config.head_dim
  heads = 2 * config.num_heads + 2 * config.num_kv_heads
  mlps, router = 1, 0
  if config.experts is not None:
    mlps, router = config.experts.per_token, dim * config.experts.count
  return dim * head_dim * heads + 3 * dim * config.hidden_dim * mlps + router


def attention_flops(config: ModelConfig, length: int) -> float:
  """Returns the FLOPs of attention over one row, in all layers."""
  windows = config.windows or (0,) * config.num_layers
  pairs = sum(visible_pairs(length, window) for window in windows)
  return 4.0 * config.num_heads * config.head_dim * pairs


def visible_pairs(length: int, window: int) -> int:
  """Returns the number of visible query–key pairs of one causal sequence.

  >>> visible_pairs(4, 0), visible_pairs(4, 2)
  (10, 7)
  """
  window_length = min(window or length, length)
  return (
    window_length * (window_length + 1) // 2
    + (length - window_length) * window_length
  )


def cache_bytes(
  config: ModelConfig,
  rows: int,
  prompt: int,
  response: int,
  *,
  int8: bool = False,
) -> int:
  """Returns the bytes of the keys and values of `rows` sequences.

  Layers whose window is shorter than a response keep a ring of the largest such
  window in place of the whole response.

  Args:
    config: the model.
    rows: number of sequences, each with its own copy of the prompt.
    prompt: tokens of a prompt.
    response: tokens of a response.
    int8: whether keys and values are int8, each vector with a float32 scale.

  >>> import dataclasses
  >>> from covrl.models import tiny
  >>> config = dataclasses.replace(tiny(16), windows=(0, 3))
  >>> cache_bytes(config, 1, 2, 10) == 2 * 2 * 8 * 4 * ((2 + 10) + (2 + 3))
  True
  """
  windows = config.windows or (0,) * config.num_layers
  ring_length = max(
    (window for window in windows if 0 < window < response), default=0
  )
  ring_layers = sum(0 < window <= ring_length for window in windows)
  full_layers = config.num_layers - ring_layers
  cached_tokens = (
    config.num_layers * prompt
    + full_layers * response
    + ring_layers * ring_length
  )
  item_bytes = jnp.dtype(config.dtype).itemsize
  vector_bytes = config.head_dim + 4 if int8 else config.head_dim * item_bytes
  return 2 * rows * config.num_kv_heads * cached_tokens * vector_bytes
