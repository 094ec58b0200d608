# SPDX-License-Identifier: Apache-2.0
"""GGUF files: outputs equal transformers', and tokenizers are rebuilt."""

import dataclasses
import functools
import json

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained.changed_gguf import GOLDEN, write_changed_gguf
from pretrained.fixtures import MODELS, assert_trees_equal, copy_of, tensors_of
from pretrained.gguf_files import (
  sentencepiece_fields,
  write_gguf,
)
from safetensors.numpy import save_file

from covrl.cli import main
from covrl.models import Lora
from covrl.models.lora import split_adapters
from covrl.models.rope import base_frequencies
from covrl.parallel.sharding import make_mesh
from covrl.pretrained import (
  load_chat_template,
  load_policy,
  load_pretrained,
  load_tokenizer,
  save_adapters,
)
from covrl.pretrained.gguf.header import read_header
from covrl.pretrained.gguf.tensors import GgufTensors
from covrl.pretrained.gguf.tokenizer import _PREPARATIONS, _pre_tokenizer
from covrl.storage import as_path

TOKENIZERS = MODELS.with_name('tokenizers')
NAMES = ('llama', 'qwen2', 'qwen3')
PROMPT = 8


@functools.cache
def load_gguf(name):
  """Loads a golden model, once per session."""
  return load_pretrained(GOLDEN / f'{name}.gguf')


@functools.cache
def golden(name):
  """Arrays that transformers computed with a golden model, by name."""
  with np.load(GOLDEN / f'{name}.npz') as file:
    return dict(file)


@pytest.mark.parametrize('name', NAMES)
def test_logits_and_continuation_equal_those_of_transformers(name):
  policy, params = load_gguf(name)
  tokens, greedy = golden(name)['tokens'], golden(name)['greedy']
  batch = np.zeros((3, len(greedy)), np.int32)
  batch[:2, : tokens.shape[1]], batch[2] = tokens, greedy
  logits = np.asarray(jax.jit(policy.logits)(params, batch))
  np.testing.assert_allclose(
    logits[:2, : tokens.shape[1]], golden(name)['logits'], atol=1e-4
  )
  argmax = logits[2, PROMPT - 1 : -1].argmax(-1)
  np.testing.assert_array_equal(argmax, greedy[PROMPT:])


def test_sharded_weights_equal_unsharded_ones():
  _, params = load_gguf('llama')
  _, sharded = load_pretrained(GOLDEN / 'llama.gguf', make_mesh((1, 2, 4)))
  assert_trees_equal(params, jax.device_get(sharded))


@pytest.mark.parametrize('name', NAMES)
def test_header_equals_that_of_the_library(name):
  file = GOLDEN / f'{name}.gguf'
  reader = gguf.GGUFReader(file)
  metadata, tensors = read_header(as_path(file))
  expected = {
    key: field.contents()
    for key, field in reader.fields.items()
    if not key.startswith('GGUF.')
  }
  assert metadata.fields.keys() == expected.keys()
  for key, value in metadata.fields.items():
    assert value == (
      pytest.approx(expected[key])
      if isinstance(value, float)
      else expected[key]
    )
  assert [*tensors] == [tensor.name for tensor in reader.tensors]
  for tensor in reader.tensors:
    entry = tensors[tensor.name]
    assert entry.start == tensor.data_offset
    assert entry.size == tensor.n_bytes
    assert entry.shape == tuple(tensor.shape[::-1])


def test_slices_of_interleaved_rows_equal_those_of_the_whole_tensor():
  tensors = GgufTensors(as_path(GOLDEN / 'llama.gguf'))
  name = 'model.layers.1.self_attn.k_proj.weight'
  matrix = tensors.read(name, (slice(None), slice(None)))
  assert matrix.shape == (16, 32)
  for rows in (slice(0, 8), slice(8, 16), slice(3, 11), slice(5, 6)):
    part = tensors.read(name, (rows, slice(4, 20)))
    np.testing.assert_array_equal(part, matrix[rows, 4:20])


@pytest.mark.parametrize('name', ['llama3', 'qwen3_moe'])
def test_gguf_gives_the_same_policy_as_safetensors(name, tmp_path):
  directory = copy_of(name, tmp_path)
  config = json.loads((directory / 'config.json').read_text())
  tensors = {k: t.astype(np.float32) for k, t in tensors_of(directory).items()}
  fields = sentencepiece_fields(TOKENIZERS / 'pieces' / 'tokenizer.model')
  size = len(fields['tokenizer.ggml.tokens'])
  # The embedding of as many tokens as the tokenizer has.
  for tensor_name in ('model.embed_tokens.weight', 'lm_head.weight'):
    tensors[tensor_name] = np.resize(tensors[tensor_name], (size, 16))
  config['vocab_size'] = size
  (directory / 'config.json').write_text(json.dumps(config))
  for file in directory.glob('*.safetensors*'):
    file.unlink()
  save_file(tensors, directory / 'model.safetensors')
  if name == 'llama3':
    unscaled_frequencies = base_frequencies(100.0, 4)
    factors = (
      unscaled_frequencies / load_policy(directory).config.frequencies[0]
    )
    tensors['rope_freqs.weight'] = factors.astype(np.float32)
  if name == 'qwen3_moe':
    tensors, fields = with_experts(tensors, config, fields)
  write_gguf(tmp_path / 'm.gguf', config, tensors, fields=fields)
  policy, params = load_pretrained(tmp_path / 'm.gguf')
  expected, expected_params = load_pretrained(directory, dtype='float32')
  assert policy == expected
  assert_trees_equal(params, expected_params)


def with_experts(tensors, config, fields):
  """Stacks experts, as in GGUF files."""
  stacked = {}
  for name, tensor in tensors.items():
    prefix, experts, expert_name = name.partition('.mlp.experts.')
    if not experts:
      stacked[name] = tensor
      continue
    layer, projection = (
      prefix.rpartition('.')[2],
      expert_name.split('.')[1][: -len('_proj')],
    )
    stacked.setdefault(f'blk.{layer}.ffn_{projection}_exps.weight', []).append(
      tensor
    )
  num_experts = config['num_local_experts']
  return {
    k: np.stack(t) if isinstance(t, list) else t for k, t in stacked.items()
  }, {
    **fields,
    'qwen3moe.expert_count': num_experts,
    'qwen3moe.expert_used_count': config['num_experts_per_tok'],
    'qwen3moe.expert_feed_forward_length': config['moe_intermediate_size'],
  }


def test_byte_level_tokenizer_equals_the_original():
  tokenizer = load_tokenizer(GOLDEN / 'llama.gguf')
  expected = json.loads((TOKENIZERS / 'bytes' / 'golden.json').read_text())
  for text, ids in zip(expected['texts'], expected['ids'], strict=True):
    assert tokenizer.encode(text) == ids
    assert tokenizer.decode(ids) == text.replace('<|im_end|>', '')
  assert tokenizer.end_ids == (302, 300)
  assert (tokenizer.bos_id, tokenizer.pad_id) == (None, 300)
  template = load_chat_template(GOLDEN / 'llama.gguf')
  assert template.render(expected['chat']) == expected['chat_text']


def test_sentencepiece_tokenizer_equals_the_original(tmp_path):
  fields = sentencepiece_fields(TOKENIZERS / 'pieces' / 'tokenizer.model')
  file = write_changed_gguf(
    tmp_path,
    without=['tokenizer.ggml.merges', 'tokenizer.ggml.eot_token_id'],
    **{k.replace('.', '__'): v for k, v in fields.items()},
    tokenizer__ggml__padding_token_id=0,
  )
  size = len(fields['tokenizer.ggml.tokens'])
  if size > 320:
    file = with_larger_embedding(file, tmp_path, size)
  tokenizer = load_tokenizer(file)
  expected = json.loads((TOKENIZERS / 'pieces' / 'golden.json').read_text())
  for text, ids in zip(expected['texts'], expected['ids'], strict=True):
    if '<|im_end|>' not in text:
      assert tokenizer.encode(text) == ids
  assert (tokenizer.bos_id, tokenizer.end_ids) == (1, (2,))


def with_larger_embedding(file, tmp_path, size):
  """A file whose embedding has `size` rows."""
  reader = gguf.GGUFReader(file)
  larger_file = tmp_path / 'grown.gguf'
  writer = gguf.GGUFWriter(str(larger_file), 'llama')
  for key, field in reader.fields.items():
    if not key.startswith(('GGUF.', 'general.arch')):
      writer.add_key_value(key, field.contents(), *field.types)
  for tensor in reader.tensors:
    data = tensor.data
    if tensor.name == 'token_embd.weight':
      data = np.resize(data, (size, data.shape[1]))
    writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return larger_file


@pytest.mark.parametrize(
  ('pre', 'words'),
  [
    ('gpt-2', ['It', "'s", 'Ġ12345', '!', 'Ċ', 'Ġok']),
    ('llama-bpe', ['It', "'s", 'Ġ', '123', '45', '!Ċ', 'Ġok']),
    ('qwen2', ['It', "'s", 'Ġ', '1', '2', '3', '4', '5', '!Ċ', 'Ġok']),
    ('smollm', ['It', "'s", 'Ġ', '1', '2', '3', '4', '5', '!', 'Ċ', 'Ġok']),
  ],
)
def test_pre_tokenizers_split_words_as_their_families_do(pre, words):
  pieces = _pre_tokenizer(_PREPARATIONS[pre]).pre_tokenize_str(
    "It's 12345!\n ok"
  )
  assert [word for word, _ in pieces] == words


def test_bos_tokens_are_those_of_the_file(tmp_path):
  fields = {'tokenizer__ggml__bos_token_id': 301}
  file = write_changed_gguf(
    tmp_path, tokenizer__ggml__pre='llama-bpe', **fields
  )
  assert load_tokenizer(file).bos_id == 301
  file = write_changed_gguf(
    tmp_path,
    tokenizer__ggml__pre='llama-bpe',
    tokenizer__ggml__add_bos_token=False,
    **fields,
  )
  assert load_tokenizer(file).bos_id is None
  file = write_changed_gguf(
    tmp_path, tokenizer__ggml__add_bos_token=True, **fields
  )
  assert load_tokenizer(file).bos_id == 301


def test_convert_writes_a_directory(tmp_path, capsys):
  main(['convert', str(GOLDEN / 'qwen2.gguf'), str(tmp_path / 'out')])
  assert capsys.readouterr().out.strip() == str(tmp_path / 'out')
  assert load_policy(tmp_path / 'out') == load_policy(GOLDEN / 'qwen2.gguf')
  tensors = GgufTensors(as_path(GOLDEN / 'qwen2.gguf'))
  written = tensors_of(tmp_path / 'out')
  assert written.keys() == tensors.files.keys()
  for name, value in written.items():
    all_slices = (slice(None),) * value.ndim
    np.testing.assert_array_equal(value, tensors.read(name, all_slices))
  source, copy = (
    load_tokenizer(path) for path in (GOLDEN / 'qwen2.gguf', tmp_path / 'out')
  )
  assert copy.to_bytes() == source.to_bytes()
  assert copy.end_ids == source.end_ids


def test_adapters_on_a_quantised_base_are_saved_and_loaded(tmp_path):
  policy, _ = load_gguf('llama')
  config = dataclasses.replace(policy.config, lora=Lora(rank=2, alpha=4.0))
  policy = dataclasses.replace(policy, config=config)
  _, adapters = split_adapters(policy.abstract_params())
  adapters = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 0.1), adapters)
  save_adapters(tmp_path / 'adapter', policy, adapters)
  fields = json.loads((tmp_path / 'adapter/adapter_config.json').read_text())
  assert fields['base_model_name_or_path'] == str(GOLDEN / 'llama.gguf')
  reloaded, loaded_params = load_pretrained(tmp_path / 'adapter')
  assert reloaded.config.lora is not None
  assert_trees_equal(reloaded.split(loaded_params)[0], adapters)
  assert load_tokenizer(tmp_path / 'adapter').vocab_size == 320
