# SPDX-License-Identifier: Apache-2.0
"""Makes models/: a tiny random checkpoint per family, and what it computes.

  python tests/golden/make_models.py
  python tests/golden/make_models.py --check DIRECTORY GOLDEN

needs torch and transformers, which covrl does not (made with torch 2.13.0 and
transformers 5.23.0, on a CPU). Each directory is as transformers writes it,
with a `golden.npz` beside it:

  tokens    [2, 40], random
  logits    [2, 40, V] of these, float32
  greedy    [40], a prompt of 8 tokens and 32 that transformers adds to it
  gradient/<tensor>  of the mean negative log-likelihood of tokens[:, 1:]

Windows (8) and the lengths of pre-training (16) are shorter than the texts.
The second form says how far the logits of an exported directory are from those
of a fixture.
"""

import importlib
import json
import pathlib
import sys

import numpy as np

# By name, since they are not where covrl's code is checked.
torch = importlib.import_module('torch')
transformers = importlib.import_module('transformers')

HERE = pathlib.Path(__file__).with_name('models')
LENGTH, PROMPT = 40, 8

SIZES = {
  'vocab_size': 48,
  'hidden_size': 16,
  'intermediate_size': 24,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'bos_token_id': 1,
  'eos_token_id': 2,
  'pad_token_id': 0,
}


def rope(kind, **numbers):
  return {
    'rope_parameters': {'rope_type': kind, 'rope_theta': 100.0, **numbers}
  }


LLAMA3 = rope(
  'llama3',
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
YARN = rope('yarn', factor=4.0, original_max_position_embeddings=16)

# Configuration class, its numbers, the dtype of the file.
MODELS = {
  'qwen2': (
    transformers.Qwen2Config,
    {'tie_word_embeddings': True, 'eos_token_id': [2, 3]},
    'float32',
  ),
  'qwen2_yarn': (
    transformers.Qwen2Config,
    {
      'tie_word_embeddings': False,
      'use_sliding_window': True,
      'sliding_window': 8,
      'max_window_layers': 1,
      **YARN,
    },
    'bfloat16',
  ),
  'qwen3': (
    transformers.Qwen3Config,
    {'tie_word_embeddings': True, 'head_dim': 8},
    'bfloat16',
  ),
  'llama2': (
    transformers.LlamaConfig,
    {'num_key_value_heads': 4, **rope('linear', factor=4.0)},
    'bfloat16',
  ),
  'llama3': (
    transformers.LlamaConfig,
    {'eos_token_id': [2, 5, 7], **LLAMA3},
    'bfloat16',
  ),
  'mistral': (
    transformers.MistralConfig,
    {'sliding_window': 8, 'head_dim': 8},
    'bfloat16',
  ),
  'gemma2': (
    transformers.Gemma2Config,
    {
      'sliding_window': 8,
      'head_dim': 8,
      'query_pre_attn_scalar': 12,
      'attn_logit_softcapping': 2.0,
      'final_logit_softcapping': 3.0,
      'attn_implementation': 'eager',
    },
    'bfloat16',
  ),
  'gemma3': (
    transformers.Gemma3TextConfig,
    {
      'num_hidden_layers': 3,
      'sliding_window': 8,
      'head_dim': 8,
      'query_pre_attn_scalar': 8,
      'layer_types': [
        'sliding_attention',
        'sliding_attention',
        'full_attention',
      ],
      'rope_parameters': {
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 100.0},
        'full_attention': {
          'rope_type': 'linear',
          'rope_theta': 1000.0,
          'factor': 4.0,
        },
      },
    },
    'bfloat16',
  ),
}


def randomise(model, generator, dtype):
  """Matrices that keep the stream's scale; no vector is left at 0 or 1."""
  for name, parameter in model.named_parameters():
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim == 1:
      # Louder blocks: else a tied model says its last token again.
      value = parameter.data + 0.3 * noise + 2 * ('post_' in name)
    else:
      scale = 0.25 if 'embed' in name else 1.5 * parameter.shape[-1] ** -0.5
      value = scale * noise
    parameter.data = value.to(getattr(torch, dtype)).float()


def logits_of(model, tokens):
  with torch.no_grad():
    return model(torch.from_numpy(tokens)).logits.float().numpy()


def draw(name, seed):
  """A random model of a family and what it adds to a random prompt."""
  kind, numbers, dtype = MODELS[name]
  config = kind(**(SIZES | numbers))
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  generator = torch.Generator().manual_seed(seed)
  randomise(model, generator, dtype)
  prompt = torch.randint(8, 48, (1, PROMPT), generator=generator)
  greedy = model.generate(
    prompt,
    attention_mask=torch.ones_like(prompt),
    do_sample=False,
    max_new_tokens=LENGTH - PROMPT,
    eos_token_id=48,
  )[0]
  tokens = torch.randint(8, 48, (2, LENGTH), generator=generator)
  return model, greedy, tokens


def first_varied(name):
  """The first draw that does not soon repeat itself, which would tell little."""
  for seed in range(100):
    model, greedy, tokens = draw(name, seed)
    if len(set(greedy[PROMPT:].tolist())) >= 12:
      return model, greedy, tokens
  raise ValueError(f'no draw of {name} is varied')


def make(name):
  dtype = MODELS[name][2]
  model, greedy, tokens = first_varied(name)
  golden = {'tokens': tokens.numpy().astype(np.int32)}
  golden['logits'] = logits_of(model, tokens.numpy())
  golden['greedy'] = greedy.numpy().astype(np.int32)
  logits = model(tokens).logits[:, :-1].flatten(0, 1)
  torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()
  for tensor, parameter in model.named_parameters():
    golden[f'gradient/{tensor}'] = parameter.grad.numpy()
  best = np.sort(logits_of(model, golden['greedy'][None])[0, PROMPT - 1 :])
  print(name, 'nearest second best', (best[:, -1] - best[:, -2]).min())
  model.to(getattr(torch, dtype)).save_pretrained(
    HERE / name, max_shard_size='8KB' if name == 'llama3' else '1GB'
  )
  np.savez_compressed(HERE / name / 'golden.npz', **golden)


def check(directory, golden):
  model = transformers.AutoModelForCausalLM.from_pretrained(
    directory, dtype=torch.float32
  )
  with np.load(pathlib.Path(golden) / 'golden.npz') as file:
    logits = logits_of(model, file['tokens'])
    print(json.dumps(float(np.abs(logits - file['logits']).max())))


if __name__ == '__main__':
  if sys.argv[1:2] == ['--check']:
    check(*sys.argv[2:])
  else:
    for each in sys.argv[1:] or MODELS:
      make(each)
