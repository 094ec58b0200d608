# SPDX-License-Identifier: Apache-2.0
"""FLOPs and KV-cache size that a model requires, from its shape.

A forward pass takes 2 FLOPs per token and parameter of a matrix (the
unembedding counts, the embedding table does not; of experts, those that a token
is routed to) and 4 per visible query–key pair, head and feature. A backward
pass takes twice as much again. Recomputation and padding are not included.
"""

from __future__ import annotations

import math

from covrl.models import ModelConfig


def update_flops(config: ModelConfig, rows: int, width: int) -> float:
  """Returns the FLOPs of an optimiser update: 6 N tokens, plus attention.

  With adapters, the frozen matrices have no weight gradient: 4 N tokens.

  >>> from covrl.models import tiny
  >>> update_flops(tiny(16), 1, 2) == 3 * scoring_flops(tiny(16), 1, 2)
  True
  """
  passes = 3 if config.lora is None else 2
  seen = rows * attention_flops(config, width)
  return passes * _matmul_flops(config, rows * width) + 3 * seen


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
  products = layer_parameters(config) * config.num_layers * width
  products += config.model_dim * config.vocab_size
  return 2.0 * rows * products + rows * attention_flops(config, width)


def decode_flops(config: ModelConfig, rows: int, slots: int) -> float:
  """Returns the FLOPs of one decoding step that attends to `slots` tokens."""
  width = config.num_heads * config.head_dim
  windows = config.windows or (0,) * config.num_layers
  seen = sum(min(window or slots, slots) for window in windows)
  return _matmul_flops(config, rows) + rows * 4.0 * width * seen


def layer_parameters(config: ModelConfig) -> int:
  """Returns the parameters of a layer's matrices that one token uses."""
  dim, head = config.model_dim, config.head_dim
  heads = 2 * config.num_heads + 2 * config.num_kv_heads
  layers, router = 1, 0
  if config.experts is not None:
    layers, router = config.experts.per_token, dim * config.experts.count
  return dim * head * heads + 3 * dim * config.hidden_dim * layers + router


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
  near = min(window or length, length)
  return near * (near + 1) // 2 + (length - near) * near


def cache_shape(
  config: ModelConfig, rows: int, slots: int, *, tensor_shards: int = 1
) -> tuple[int, ...]:
  """Returns the shape of the keys (or values) of `rows` sequences.

  Args:
    config: the model.
    rows: number of sequences.
    slots: tokens of a sequence.
    tensor_shards: devices that share one copy of the weights; where there are
      fewer KV heads, each is stored several times.

  Returns:
    Layers × rows × KV heads × slots × head width.
  """
  heads = math.lcm(config.num_kv_heads, tensor_shards)
  return (config.num_layers, rows, heads, slots, config.head_dim)
