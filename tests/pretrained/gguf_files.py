# SPDX-License-Identifier: Apache-2.0
"""Writes GGUF files from tensors and configurations of transformers, for tests."""

import json
import pathlib

import gguf
import numpy as np

ARCHITECTURES = {
  'LlamaForCausalLM': 'llama',
  'Qwen2ForCausalLM': 'qwen2',
  'Qwen3ForCausalLM': 'qwen3',
  'Qwen3MoeForCausalLM': 'qwen3moe',
}
_NAMES = {
  'model.embed_tokens': 'token_embd',
  'model.norm': 'output_norm',
  'lm_head': 'output',
  'input_layernorm': 'attn_norm',
  'post_attention_layernorm': 'ffn_norm',
  'self_attn.q_proj': 'attn_q',
  'self_attn.k_proj': 'attn_k',
  'self_attn.v_proj': 'attn_v',
  'self_attn.o_proj': 'attn_output',
  'self_attn.q_norm': 'attn_q_norm',
  'self_attn.k_norm': 'attn_k_norm',
  'mlp.gate': 'ffn_gate_inp',
  'mlp.gate_proj': 'ffn_gate',
  'mlp.up_proj': 'ffn_up',
  'mlp.down_proj': 'ffn_down',
}


def gguf_name(name):
  """Name in a GGUF file of a tensor of transformers."""
  stem, _, suffix = name.rpartition('.')
  if stem in _NAMES:
    return f'{_NAMES[stem]}.{suffix}'
  layer, _, part = stem.removeprefix('model.layers.').partition('.')
  return f'blk.{layer}.{_NAMES[part]}.{suffix}'


def interleave(matrix, heads):
  """Interleaves the halves of each head, as in files of the Llama family."""
  halves = matrix.reshape(heads, 2, -1, *matrix.shape[1:])
  return halves.swapaxes(1, 2).reshape(matrix.shape)


def quantise(tensor, quantisation):
  """Bytes of a tensor in a type, by the library or, for Q4_K and Q6_K, random."""
  quantisation = gguf.GGMLQuantizationType[quantisation]
  if quantisation.name not in ('Q4_K', 'Q6_K'):
    return gguf.quants.quantize(tensor.astype(np.float32), quantisation)
  block, size = gguf.GGML_QUANT_SIZES[quantisation]
  shape = (*tensor.shape[:-1], tensor.shape[-1] // block, size)
  content = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
  # The float16 scales of a block, which random bytes could make NaN or infinite.
  scales = np.array([0.0008, 0.0004], np.float16).view(np.uint8)
  start = 0 if quantisation.name == 'Q4_K' else size - 2
  content[..., start : start + 4] = scales[: min(4, size - start)]
  return content.reshape(*tensor.shape[:-1], -1)


def write_gguf(file, config, tensors, *, types=None, fields=None):
  """Writes a model as a GGUF file.

  Args:
    file: path of the file.
    config: fields of a config.json.
    tensors: tensors by their names in transformers or in GGUF files.
    types: type of each tensor by a part of its name; F32 unless given.
    fields: further fields of the metadata, such as the tokenizer's.
  """
  architecture = ARCHITECTURES[config['architectures'][0]]
  writer = gguf.GGUFWriter(str(file), architecture)
  heads, kv_heads = config['num_attention_heads'], config['num_key_value_heads']
  rope = config.get('rope_parameters') or config
  writer.add_block_count(config['num_hidden_layers'])
  writer.add_context_length(config['max_position_embeddings'])
  writer.add_embedding_length(config['hidden_size'])
  writer.add_feed_forward_length(config['intermediate_size'])
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_layer_norm_rms_eps(config['rms_norm_eps'])
  writer.add_rope_freq_base(rope['rope_theta'])
  writer.add_vocab_size(config['vocab_size'])
  head_dim = config.get('head_dim') or config['hidden_size'] // heads
  writer.add_key_length(head_dim)
  writer.add_value_length(head_dim)
  if architecture == 'llama':
    writer.add_rope_dimension_count(head_dim)
  for name, value in (fields or {}).items():
    _add_field(writer, name, value)
  for name, tensor in tensors.items():
    if architecture == 'llama' and 'q_proj' in name:
      tensor = interleave(tensor, heads)
    elif architecture == 'llama' and 'k_proj' in name:
      tensor = interleave(tensor, kv_heads)
    is_gguf_name = name.startswith(('blk.', 'rope_freqs.'))
    stored_name = name if is_gguf_name else gguf_name(name)
    _add_tensor(writer, stored_name, tensor, types or {})
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _add_tensor(writer, name, tensor, types):
  """Adds a tensor, quantised to the type of its name."""
  kind = next((k for part, k in types.items() if part in name), 'F32')
  kind = 'F32' if tensor.ndim == 1 else kind
  content = quantise(np.asarray(tensor), kind)
  writer.add_tensor(name, content, raw_dtype=gguf.GGMLQuantizationType[kind])


def _add_field(writer, name, value):
  """Adds a field of the type of its value."""
  if isinstance(value, list):
    writer.add_array(name, value)
  elif isinstance(value, bool):
    writer.add_bool(name, value)
  elif isinstance(value, int):
    writer.add_uint32(name, value)
  elif isinstance(value, float):
    writer.add_float32(name, value)
  else:
    writer.add_string(name, value)


def byte_level_fields(directory, pre, bos=None):
  """Metadata of a byte-level tokenizer, from a directory of transformers."""
  content = json.loads((directory / 'tokenizer.json').read_text())
  special = {token['content'] for token in content['added_tokens']}
  ids = dict(content['model']['vocab'])
  ids |= {token['content']: token['id'] for token in content['added_tokens']}
  tokens = sorted(ids, key=ids.__getitem__)
  generation = directory / 'generation_config.json'
  eos = json.loads(generation.read_text())['eos_token_id']
  config = json.loads((directory / 'tokenizer_config.json').read_text())
  template = directory / 'chat_template.jinja'
  fields = {
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.pre': pre,
    'tokenizer.ggml.tokens': tokens,
    'tokenizer.ggml.token_type': [3 if t in special else 1 for t in tokens],
    'tokenizer.ggml.merges': [
      merge if isinstance(merge, str) else ' '.join(merge)
      for merge in content['model']['merges']
    ],
    'tokenizer.ggml.eos_token_id': eos[0],
    'tokenizer.ggml.eot_token_id': eos[1],
    'tokenizer.ggml.padding_token_id': ids[config['pad_token']],
    'tokenizer.chat_template': template.read_text(),
  }
  if bos is not None:
    fields['tokenizer.ggml.bos_token_id'] = ids[bos]
  return fields


def sentencepiece_fields(file, eos_id=2):
  """Metadata of a sentencepiece tokenizer, from its model."""
  import sentencepiece

  model = pathlib.Path(file).read_bytes()
  processor = sentencepiece.SentencePieceProcessor(model_proto=model)
  ids = range(processor.vocab_size())

  def token_type(token):
    # Types of GGUF: 1 normal, 2 unknown, 3 control, 6 byte.
    if processor.is_unknown(token):
      return 2
    if processor.is_control(token):
      return 3
    return 6 if processor.is_byte(token) else 1

  return {
    'tokenizer.ggml.model': 'llama',
    'tokenizer.ggml.tokens': [processor.id_to_piece(token) for token in ids],
    'tokenizer.ggml.scores': [processor.get_score(token) for token in ids],
    'tokenizer.ggml.token_type': [token_type(token) for token in ids],
    'tokenizer.ggml.bos_token_id': processor.bos_id(),
    'tokenizer.ggml.eos_token_id': eos_id,
    'tokenizer.ggml.unknown_token_id': processor.unk_id(),
  }
