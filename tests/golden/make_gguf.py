# SPDX-License-Identifier: Apache-2.0
"""Makes gguf/: tiny random models as GGUF files, with their outputs.

  python tests/golden/make_gguf.py

needs torch, transformers and gguf (made with torch 2.13.0, transformers 5.24.0
and gguf 0.19.0, on a CPU). Tensors have many types; those in Q4_K and Q6_K are
random bytes. transformers loads each file; `NAME.npz` has

  tokens    [2, 24], random tokens
  logits    [2, 24, V], logits of these tokens, float32
  greedy    [32], a prompt of 8 tokens and its greedy continuation of 24

  python tests/golden/make_gguf.py --check FILE IDS

prints transformers' greedy continuation of comma-separated ids, for any file.
"""

import importlib
import pathlib
import sys

import numpy as np

OUTPUT = pathlib.Path(__file__).with_name('gguf')
sys.path.insert(0, str(OUTPUT.parents[1]))

gguf_files = importlib.import_module('pretrained.gguf_files')
torch = importlib.import_module('torch')
transformers = importlib.import_module('transformers')

LENGTH, PROMPT = 24, 8
SIZES = {
  'vocab_size': 320,
  'hidden_size': 32,
  'intermediate_size': 256,
  'num_hidden_layers': 2,
  'num_attention_heads': 4,
  'num_key_value_heads': 2,
  'max_position_embeddings': 64,
  'rms_norm_eps': 1e-5,
  'rope_theta': 100.0,
}
# Architecture, changed sizes, and the type of each tensor by a part of its name.
MODELS = {
  'llama': (
    'LlamaForCausalLM',
    {},
    {
      'token_embd': 'Q8_0',
      'attn_q': 'Q4_0',
      'attn_k': 'Q8_0',
      'attn': 'F16',
      'ffn_down': 'Q6_K',
      'ffn': 'Q4_1',
    },
  ),
  'qwen2': (
    'Qwen2ForCausalLM',
    {},
    {
      'token_embd': 'F16',
      'output.': 'Q5_1',
      'attn': 'Q5_0',
      'ffn_down': 'Q4_K',
      'ffn': 'BF16',
    },
  ),
  # The width of a head is the one that transformers assumes.
  'qwen3': (
    'Qwen3ForCausalLM',
    {'num_attention_heads': 2, 'num_key_value_heads': 1, 'head_dim': 128},
    {'token_embd': 'Q8_0', 'attn': 'Q8_0', 'ffn': 'Q8_0'},
  ),
}


def random_tensors(name, config, generator):
  """Random tensors that preserve the scale of activations."""
  model_class = getattr(transformers, config['architectures'][0])
  sizes = {
    key: value for key, value in config.items() if key != 'architectures'
  }
  model = model_class(
    model_class.config_class(**sizes, tie_word_embeddings=name != 'qwen2')
  )
  tensors = {}
  for path, parameter in model.named_parameters():
    noise = generator.standard_normal(parameter.shape).astype(np.float32)
    if parameter.ndim == 1:
      tensors[path] = parameter.detach().numpy() + 0.3 * noise
    else:
      scale = 0.25 if 'embed' in path else 1.5 * parameter.shape[-1] ** -0.5
      tensors[path] = scale * noise
  return tensors


def load(file):
  """Loads a GGUF file with transformers, in float32."""
  return transformers.AutoModelForCausalLM.from_pretrained(
    file.parent, gguf_file=file.name, dtype=torch.float32
  ).eval()


def continuation(model, prompt, length):
  """The prompt and its greedy continuation."""
  return model.generate(
    torch.tensor([prompt]),
    attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
    do_sample=False,
    max_new_tokens=length,
    eos_token_id=model.config.vocab_size,
    pad_token_id=0,
  )[0].tolist()


def make(name, seed):
  """Makes a file, and returns its number of distinct greedy tokens."""
  architecture, changes, types = MODELS[name]
  config = {'architectures': [architecture], **SIZES, **changes}
  generator = np.random.default_rng(seed)
  tokenizer = OUTPUT.parent / 'tokenizers' / 'bytes'
  fields = gguf_files.byte_level_fields(tokenizer, 'gpt-2')
  file = OUTPUT / f'{name}.gguf'
  tensors = random_tensors(name, config, generator)
  gguf_files.write_gguf(file, config, tensors, types=types, fields=fields)
  model = load(file)
  tokens = generator.integers(0, 320, (2, LENGTH))
  prompt = generator.integers(0, 320, PROMPT).tolist()
  greedy = continuation(model, prompt, LENGTH)
  with torch.no_grad():
    logits = model(torch.from_numpy(tokens)).logits.numpy()
  np.savez_compressed(
    OUTPUT / f'{name}.npz',
    tokens=tokens.astype(np.int32),
    logits=logits.astype(np.float32),
    greedy=np.array(greedy, np.int32),
  )
  return len(set(greedy[PROMPT:]))


if __name__ == '__main__':
  if sys.argv[1:2] == ['--check']:
    ids = [int(token) for token in sys.argv[3].split(',')]
    tokens = continuation(load(pathlib.Path(sys.argv[2])), ids, LENGTH)
    print(tokens[len(ids) :])
  else:
    OUTPUT.mkdir(exist_ok=True)
    for each in MODELS:
      # Continuations that repeat one token would show little.
      seed = next(seed for seed in range(100) if make(each, seed) >= 12)
      print(each, 'seed', seed)
