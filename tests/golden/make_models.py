# SPDX-License-Identifier: Apache-2.0
"""Makes models/: tiny random checkpoints of all families, with their outputs.

  python tests/golden/make_models.py [NAME...]
  python tests/golden/make_models.py --check DIRECTORY GOLDEN

needs torch, transformers and peft, which covrl does not need (made with torch
2.13.0, transformers 5.23.0 and peft 0.21.2, on a CPU). Each directory is written
by transformers or PEFT and has a `golden.npz` with:

  tokens    [2, 40], random tokens
  logits    [2, 40, V], logits of these tokens, float32
  greedy    [40], a prompt of 8 tokens and its greedy continuation of 32
  gradient/<tensor>  gradient of the mean negative log-likelihood of tokens[:, 1:]
  balance   [L], for mixtures of experts: transformers' load-balancing loss of
            each layer, divided by the number of experts per token

Windows (8) and the original context lengths (16) are shorter than the texts. The
second form prints the largest difference between the logits of an exported
directory, of a model or of adapters, and those of a fixture.
"""

import contextlib
import copy
import importlib
import json
import pathlib
import sys
import tempfile

import numpy as np

# Imported by name, since they are not installed where types are checked.
torch = importlib.import_module('torch')
transformers = importlib.import_module('transformers')
peft = importlib.import_module('peft')
safetensors = importlib.import_module('safetensors.torch')
mixtral = importlib.import_module(
  'transformers.models.mixtral.modeling_mixtral'
)

OUTPUT = pathlib.Path(__file__).with_name('models')
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


def rope(kind, **settings):
  """Settings of rotary embeddings, as in the JSON of a model."""
  return {
    'rope_parameters': {'rope_type': kind, 'rope_theta': 100.0, **settings}
  }


LLAMA3 = rope(
  'llama3',
  factor=8.0,
  low_freq_factor=1.0,
  high_freq_factor=4.0,
  original_max_position_embeddings=16,
)
YARN = rope('yarn', factor=4.0, original_max_position_embeddings=16)

# Configuration class, its settings beside SIZES, and the dtype of the file.
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
  # The Llama architecture with as many keys as queries, and no RoPE scaling.
  'deepseek_math': (
    transformers.LlamaConfig,
    {
      'num_key_value_heads': 4,
      'rms_norm_eps': 1e-6,
      'tie_word_embeddings': False,
      **rope('default'),
    },
    'bfloat16',
  ),
  'qwen3_moe': (
    transformers.Qwen3MoeConfig,
    {
      'head_dim': 8,
      'moe_intermediate_size': 12,
      'num_experts': 8,
      'num_experts_per_tok': 3,
      'norm_topk_prob': True,
    },
    'bfloat16',
  ),
  'mixtral': (
    transformers.MixtralConfig,
    {
      'num_local_experts': 4,
      'num_experts_per_tok': 2,
      'tie_word_embeddings': False,
      **rope('default'),
    },
    'float32',
  ),
}

# Base model and LoRA settings of each adapter.
ADAPTERS = {
  'qwen2_lora': (
    'qwen2',
    {'r': 3, 'lora_alpha': 5, 'target_modules': 'all-linear'},
  ),
  'mistral_lora': (
    'mistral',
    {
      'r': 2,
      'lora_alpha': 1,
      'target_modules': ['q_proj', 'v_proj'],
      'use_rslora': True,
    },
  ),
}


def randomise(model, generator, dtype):
  """Draws matrices that preserve the scale of activations, and random vectors."""
  for name, parameter in model.named_parameters():
    noise = torch.randn(parameter.shape, generator=generator)
    if parameter.ndim == 1:
      # Larger outputs of blocks: otherwise models with tied embeddings repeat
      # their last token.
      value = parameter.data + 0.3 * noise + 2 * ('post_' in name)
    else:
      scale = 0.25 if 'embed' in name else 1.5 * parameter.shape[-1] ** -0.5
      value = scale * noise
    parameter.data = value.to(getattr(torch, dtype)).float()


def logits_of(model, tokens):
  """Logits of rows of tokens, float32."""
  with torch.no_grad():
    return model(torch.from_numpy(tokens)).logits.float().numpy()


def draw(name, seed):
  """A random model, its greedy continuation of a random prompt, and tokens."""
  config_class, settings, dtype = MODELS[name]
  config = config_class(**(SIZES | settings))
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


def first_varied_draw(name):
  """The first draw whose greedy continuation has at least 12 distinct tokens."""
  for seed in range(100):
    model, greedy, tokens = draw(name, seed)
    if len(set(greedy[PROMPT:].tolist())) >= 12:
      return model, greedy, tokens
  raise ValueError(
    f'a draw of {name} must have a varied continuation, got none'
  )


def make(name):
  """Writes a model and its golden file."""
  dtype = MODELS[name][2]
  model, greedy, tokens = first_varied_draw(name)
  golden = {'tokens': tokens.numpy().astype(np.int32)}
  golden['logits'] = logits_of(model, tokens.numpy())
  golden['greedy'] = greedy.numpy().astype(np.int32)
  if hasattr(model.config, 'num_experts_per_tok'):
    golden['balance'] = balance_of(model, tokens)
  differentiate(model, tokens)
  ordered = np.sort(logits_of(model, golden['greedy'][None])[0, PROMPT - 1 :])
  print(
    name,
    'smallest margin of a greedy token',
    (ordered[:, -1] - ordered[:, -2]).min(),
  )
  # A copy, since the gradients stay in float32.
  copy.deepcopy(model).to(getattr(torch, dtype)).save_pretrained(
    OUTPUT / name, max_shard_size='8KB' if name == 'llama3' else '1GB'
  )
  golden |= gradients_of(model)
  np.savez_compressed(OUTPUT / name / 'golden.npz', **golden)


def make_adapter(name):
  """Writes LoRA adapters of a model and their golden file."""
  base, settings = ADAPTERS[name]
  # Loaded by its bare name, which is then stored in the adapter's config.
  with contextlib.chdir(OUTPUT):
    model = transformers.AutoModelForCausalLM.from_pretrained(
      base, dtype=torch.float32
    )
  with np.load(OUTPUT / base / 'golden.npz') as file:
    tokens = torch.from_numpy(file['tokens']).long()
  config = peft.LoraConfig(task_type='CAUSAL_LM', **settings)
  model = peft.get_peft_model(model, config).eval()
  generator = torch.Generator().manual_seed(0)
  for parameter in model.parameters():
    if parameter.requires_grad:
      parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
  golden = {'tokens': tokens.numpy().astype(np.int32)}
  golden['logits'] = logits_of(model, golden['tokens'])
  differentiate(model, tokens)
  model.save_pretrained(OUTPUT / name)
  (OUTPUT / name / 'README.md').unlink(missing_ok=True)
  golden |= gradients_of(model)
  np.savez_compressed(OUTPUT / name / 'golden.npz', **golden)


def balance_of(model, tokens):
  """Load-balancing loss of each layer, 1 if all experts are used equally."""
  experts, per_token = (
    model.config.num_experts,
    model.config.num_experts_per_tok,
  )
  with torch.no_grad():
    layers = model(tokens, output_router_logits=True).router_logits
  loss = mixtral.load_balancing_loss_func
  return np.array(
    [float(loss((x,), experts, per_token)) / per_token for x in layers]
  )


def differentiate(model, tokens):
  """Stores the gradient of the mean negative log-likelihood in the parameters."""
  logits = model(tokens).logits[:, :-1].flatten(0, 1)
  torch.nn.functional.cross_entropy(logits, tokens[:, 1:].flatten()).backward()


def gradients_of(model):
  """Gradients by the tensor names of the saved weights."""
  for parameter in model.parameters():
    if parameter.requires_grad:
      parameter.data = parameter.grad.float()
  with tempfile.TemporaryDirectory() as directory:
    model.save_pretrained(directory)
    tensors = {}
    for file in pathlib.Path(directory).glob('*.safetensors'):
      tensors |= safetensors.load_file(file)
  return {f'gradient/{name}': t.numpy() for name, t in tensors.items()}


def check(directory, golden):
  """Prints the largest difference from the logits in a golden file."""
  is_adapter = (pathlib.Path(directory) / 'adapter_config.json').exists()
  library = peft.AutoPeftModelForCausalLM if is_adapter else None
  library = library or transformers.AutoModelForCausalLM
  with contextlib.chdir(OUTPUT):
    model = library.from_pretrained(directory, dtype=torch.float32)
  with np.load(pathlib.Path(golden) / 'golden.npz') as file:
    logits = logits_of(model, file['tokens'])
    print(json.dumps(float(np.abs(logits - file['logits']).max())))


if __name__ == '__main__':
  if sys.argv[1:2] == ['--check']:
    check(*sys.argv[2:])
  else:
    for each in sys.argv[1:] or (*MODELS, *ADAPTERS):
      (make_adapter if each in ADAPTERS else make)(each)
