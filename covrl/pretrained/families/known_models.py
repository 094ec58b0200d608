# SPDX-License-Identifier: Apache-2.0
"""Shapes of published models, from their config.json.

They are used to estimate the memory of a run before its model is downloaded;
the run itself reads the model's files.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Iterator, Mapping
from typing import Any

_QWEN2: Mapping[str, Any] = {
  'architectures': ['Qwen2ForCausalLM'],
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-6,
  'rope_theta': 1e6,
  'torch_dtype': 'bfloat16',
}
_QWEN2_5: Mapping[str, Any] = {
  **_QWEN2,
  'vocab_size': 152064,
  'tie_word_embeddings': False,
}
_QWEN2_5_0_5B: Mapping[str, Any] = {
  **_QWEN2,
  'vocab_size': 151936,
  'hidden_size': 896,
  'intermediate_size': 4864,
  'num_hidden_layers': 24,
  'num_attention_heads': 14,
  'num_key_value_heads': 2,
  'tie_word_embeddings': True,
}
# Models in Llama's form whose width is 4,096; most have these numbers of heads and
# hidden units.
_LLAMA_WIDTH_4096: Mapping[str, Any] = {
  'architectures': ['LlamaForCausalLM'],
  'hidden_act': 'silu',
  'rms_norm_eps': 1e-6,
  'rope_theta': 1e4,
  'torch_dtype': 'bfloat16',
  'hidden_size': 4096,
  'intermediate_size': 14336,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': 8,
  'tie_word_embeddings': False,
}

KNOWN_MODELS: Mapping[str, Mapping[str, Any]] = {
  'Qwen/Qwen2.5-0.5B': _QWEN2_5_0_5B,
  'Qwen/Qwen2.5-0.5B-Instruct': _QWEN2_5_0_5B,
  'Qwen/Qwen2.5-1.5B': {
    **_QWEN2,
    'vocab_size': 151936,
    'hidden_size': 1536,
    'intermediate_size': 8960,
    'num_hidden_layers': 28,
    'num_attention_heads': 12,
    'num_key_value_heads': 2,
    'tie_word_embeddings': True,
  },
  'Qwen/Qwen2.5-7B': {
    **_QWEN2_5,
    'hidden_size': 3584,
    'intermediate_size': 18944,
    'num_hidden_layers': 28,
    'num_attention_heads': 28,
    'num_key_value_heads': 4,
  },
  'Qwen/Qwen2.5-32B': {
    **_QWEN2_5,
    'hidden_size': 5120,
    'intermediate_size': 27648,
    'num_hidden_layers': 64,
    'num_attention_heads': 40,
    'num_key_value_heads': 8,
  },
  'Qwen/Qwen2.5-72B': {
    **_QWEN2_5,
    'hidden_size': 8192,
    'intermediate_size': 29568,
    'num_hidden_layers': 80,
    'num_attention_heads': 64,
    'num_key_value_heads': 8,
  },
  'meta-llama/Llama-3.1-8B-Instruct': {
    **_LLAMA_WIDTH_4096,
    'rms_norm_eps': 1e-5,
    'rope_theta': 5e5,
    'vocab_size': 128256,
  },
  'mistralai/Mistral-7B-Instruct-v0.3': {
    **_LLAMA_WIDTH_4096,
    'architectures': ['MistralForCausalLM'],
    'rms_norm_eps': 1e-5,
    'rope_theta': 1e6,
    'vocab_size': 32768,
  },
  'deepseek-ai/deepseek-math-7b-instruct': {
    **_LLAMA_WIDTH_4096,
    'vocab_size': 102400,
    'intermediate_size': 11008,
    'num_hidden_layers': 30,
    'num_key_value_heads': 32,
  },
}


@contextlib.contextmanager
def known_model_directory(name: str) -> Iterator[str | None]:
  """Yields a temporary directory with a known model's config.json alone.

  Args:
    name: name of the model on the Hugging Face hub.

  Yields:
    The directory; `None` if the model is unknown, or if a directory of this
    name exists.

  >>> with known_model_directory('Qwen/Qwen2.5-7B') as directory:
  ...   [file.name for file in pathlib.Path(directory or '').iterdir()]
  ['config.json']
  """
  fields = KNOWN_MODELS.get(name)
  if fields is None or pathlib.Path(name).is_dir():
    yield None
    return
  with tempfile.TemporaryDirectory() as directory:
    (pathlib.Path(directory) / 'config.json').write_text(json.dumps(fields))
    yield directory
