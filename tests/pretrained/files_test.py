# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of model directories: round trips, dtypes, errors."""

import dataclasses
import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pretrained.fixtures import (
  MODELS,
  NAMES,
  assert_trees_equal,
  copy_of,
  loaded,
  replace_tensors,
  tensors_of,
)

from covrl.models import LinearScaling, Policy, YarnScaling, tiny
from covrl.parallel.sharding import make_mesh
from covrl.pretrained import (
  convert,
  load_policy,
  load_pretrained,
  save_pretrained,
)
from covrl.pretrained.weights.tensors import Tensors

GATE = 'model.layers.1.mlp.gate_proj.weight'


def edit(directory, **fields):
  """Replaces fields of a model's `config.json`."""
  file = directory / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize('name', NAMES)
def test_round_trip_is_bit_exact(name, tmp_path):
  policy, params = load_pretrained(MODELS / name)
  save_pretrained(tmp_path / 'again', policy, params, shard_bytes=4000)
  before, after = (tensors_of(d) for d in (MODELS / name, tmp_path / 'again'))
  assert before.keys() == after.keys()
  for tensor, value in before.items():
    assert value.dtype == after[tensor].dtype
    np.testing.assert_array_equal(value, after[tensor])
  for file in ('config.json', 'generation_config.json'):
    before, after = (
      json.loads((d / file).read_text())
      for d in (MODELS / name, tmp_path / 'again')
    )
    assert before == after
  reloaded, reloaded_params = load_pretrained(tmp_path / 'again')
  assert reloaded == policy
  assert_trees_equal(params, reloaded_params)


@pytest.mark.parametrize(
  ('dtype', 'name'),
  [
    (jnp.float32, 'float32'),
    ('float32', 'float32'),
    (np.float32, 'float32'),
    (np.dtype('float32'), 'float32'),
    (jnp.bfloat16, 'bfloat16'),
    (jnp.dtype('bfloat16'), 'bfloat16'),
  ],
)
def test_takes_dtypes_in_any_notation(dtype, name, tmp_path):
  policy, params = load_pretrained(MODELS / 'llama2', dtype=dtype)
  assert policy.config.dtype == policy.config.param_dtype == name
  assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {name}
  assert load_policy(MODELS / 'llama2', dtype) == policy
  wide = loaded('llama2')
  convert(*wide, tmp_path / 'out', output_format='model', dtype=dtype)
  assert load_policy(tmp_path / 'out').config.dtype == name
  written = {
    tensor.dtype.name for tensor in tensors_of(tmp_path / 'out').values()
  }
  assert written == {name}


def test_both_names_of_the_dtype_of_a_config_are_written(tmp_path):
  """Older readers take the one, newer ones the other."""
  directory = copy_of('llama2', tmp_path)
  file = directory / 'config.json'
  names = {'dtype': 'bfloat16', 'torch_dtype': 'bfloat16'}
  file.write_text(json.dumps(json.loads(file.read_text()) | names))
  policy, params = load_pretrained(directory, dtype='float32')
  save_pretrained(tmp_path / 'out', policy, params)
  fields = json.loads((tmp_path / 'out/config.json').read_text())
  assert {fields[name] for name in names} == {'float32'}


@pytest.mark.parametrize('dtype', ['float33', 'int32', jnp.int8, object()])
def test_refuses_other_dtypes(dtype, tmp_path):
  with pytest.raises(ValueError, match='must be a floating-point dtype'):
    load_pretrained(MODELS / 'llama2', dtype=dtype)
  with pytest.raises(ValueError, match='must be a floating-point dtype'):
    convert(
      *loaded('llama2'), tmp_path / 'out', output_format='model', dtype=dtype
    )


@pytest.mark.parametrize('name', ['llama2', 'gemma3', 'qwen3_moe', 'mixtral'])
def test_generated_config_describes_the_same_model(name, tmp_path):
  policy, params = loaded(name)
  save_pretrained(tmp_path / 'new', Policy(policy.config), params)
  reloaded, reloaded_params = load_pretrained(tmp_path / 'new')
  assert reloaded.config == policy.config
  assert_trees_equal(params, reloaded_params)


def test_exports_own_policies_as_llama(tmp_path):
  policy = Policy(tiny(16))
  params = policy.init(jax.random.key(0))
  save_pretrained(tmp_path / 'ours', policy, params)
  fields = json.loads((tmp_path / 'ours' / 'config.json').read_text())
  assert fields['architectures'] == ['LlamaForCausalLM']
  reloaded, reloaded_params = load_pretrained(tmp_path / 'ours')
  assert reloaded.config == policy.config
  assert_trees_equal(params, reloaded_params)


def test_writes_sharded_arrays_whole(tmp_path):
  mesh = make_mesh((2, 2, 2))
  policy, params = load_pretrained(MODELS / 'qwen2', mesh)
  save_pretrained(tmp_path / 'again', policy, params)
  after = tensors_of(tmp_path / 'again')
  for tensor, value in tensors_of(MODELS / 'qwen2').items():
    np.testing.assert_array_equal(value, after[tensor])


def test_loading_holds_one_tensor_at_a_time(tmp_path):
  config = dataclasses.replace(
    tiny(64), num_layers=16, model_dim=256, head_dim=64, hidden_dim=1024
  )
  policy = Policy(config)
  params = jax.tree.map(
    lambda leaf: jnp.ones(leaf.shape, leaf.dtype), policy.abstract_params()
  )
  save_pretrained(tmp_path / 'big', policy, params)
  largest, total = 256 * 1024 * 4, 4 * policy.num_params
  load_pretrained(tmp_path / 'big')  # Imports are not measured.
  tracemalloc.start()
  load_pretrained(tmp_path / 'big')
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 4 * largest < total / 12


def test_reads_replicated_slices_once(monkeypatch):
  slices_read = []
  original_read = Tensors.read

  def recording_read(self, name, slices, dtype):
    if name == GATE:
      slices_read.append(tuple(range(24)[cut] for cut in slices))
    return original_read(self, name, slices, dtype)

  monkeypatch.setattr(Tensors, 'read', recording_read)
  load_pretrained(MODELS / 'qwen2', make_mesh((4, 2, 1)))
  assert slices_read == [(range(24), range(8)), (range(24), range(8, 16))]


def test_reads_files_of_older_versions(tmp_path):
  directory = copy_of('qwen2_yarn', tmp_path)
  new = load_policy(directory)
  fields = json.loads((directory / 'config.json').read_text())
  rope = fields.pop('rope_parameters')
  fields.pop('layer_types')
  fields['rope_theta'] = rope.pop('rope_theta')
  fields['rope_scaling'] = {
    'type': 'yarn',
    'factor': 4,
    'original_max_position_embeddings': 16,
  }
  fields['torch_dtype'] = fields.pop('dtype')
  (directory / 'config.json').write_text(json.dumps(fields))
  old = load_policy(directory)
  assert old.config == new.config
  assert isinstance(old.config.rope_scaling, YarnScaling)
  assert old.config.windows == (0, 8)


def test_reads_the_published_gemma_3_config(tmp_path):
  directory = copy_of('gemma3', tmp_path)
  fields = json.loads((directory / 'config.json').read_text())
  for name in ('rope_parameters', 'layer_types', '_sliding_window_pattern'):
    del fields[name]
  fields |= {
    'rope_theta': 1000000,
    'rope_local_base_freq': 10000,
    'rope_scaling': {'rope_type': 'linear', 'factor': 8.0},
    'sliding_window_pattern': 3,
  }
  (directory / 'config.json').write_text(json.dumps(fields))
  config = load_policy(directory).config
  assert config.windows == (8, 8, 0)
  assert config.rope_scaling == LinearScaling(factor=8.0)
  assert (config.rope_theta, config.local_rope_theta) == (1e6, 1e4)


def test_failed_writes_leave_nothing_behind(tmp_path, monkeypatch):
  policy, params = loaded('mistral')

  def fail(*args, **kwargs):
    raise OSError('the disk is full')

  monkeypatch.setattr('safetensors.numpy.save_file', fail)
  with pytest.raises(OSError, match='full'):
    save_pretrained(tmp_path / 'out', policy, params)
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('output_format', ['model', 'orbax'])
def test_files_have_the_mode_of_the_umask(output_format, tmp_path):
  (tmp_path / 'usual').write_text('')
  (tmp_path / 'folder').mkdir()
  convert(*loaded('mistral'), tmp_path / 'out', output_format=output_format)
  modes = {
    is_directory: {
      path.stat().st_mode
      for path in (tmp_path / 'out').rglob('*')
      if path.is_dir() == is_directory
    }
    for is_directory in (False, True)
  }
  assert modes[False] == {(tmp_path / 'usual').stat().st_mode}
  assert modes[True] <= {(tmp_path / 'folder').stat().st_mode}


def test_refuses_to_overwrite(tmp_path):
  policy, params = loaded('mistral')
  (tmp_path / 'kept').write_text('')
  with pytest.raises(ValueError, match='must not exist or be empty'):
    save_pretrained(tmp_path, policy, params)


def test_refuses_unsupported_settings(tmp_path):
  policy = Policy(dataclasses.replace(tiny(16), logit_soft_cap=3.0))
  params = policy.init(jax.random.key(0))
  with pytest.raises(ValueError, match='one that a family can describe'):
    save_pretrained(tmp_path / 'out', policy, params)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (
      {'architectures': ['BertModel']},
      r'config\.json: the architecture must be one of LlamaFor.*got BertModel',
    ),
    (
      {'rope_parameters': {'rope_type': 'dynamic', 'rope_theta': 1e4}},
      r"config\.json: rope_type must be default, linear, .*'dynamic'",
    ),
    (
      {'hidden_act': 'relu'},
      r"config\.json: the activation must be one of .*got 'relu'",
    ),
    ({'attention_bias': True}, r'attention_bias must be false .*got true'),
    (
      {'num_key_value_heads': 3},
      r'config\.json: num_heads must be a multiple .* got 4 and 3',
    ),
    (
      {'intermediate_size': 32},
      r'model\.safetensors: model\.layers\.0\.mlp\.down_proj\.weight must have'
      r' shape \(16, 32\), got \(16, 24\)',
    ),
    (
      {'num_hidden_layers': 3},
      r'must hold model\.layers\.2\.\S+ of shape .*got model\.safetensors without it',
    ),
    (
      {'num_hidden_layers': 1},
      r'model\.safetensors must hold tensors of a Mistral.* got model\.layers\.1',
    ),
  ],
)
def test_refuses_invalid_configs(fields, message, tmp_path):
  directory = copy_of('mistral', tmp_path)
  edit(directory, **fields)
  with pytest.raises(ValueError, match=message):
    load_pretrained(directory)


def test_names_a_missing_field(tmp_path):
  directory = copy_of('mistral', tmp_path)
  fields = json.loads((directory / 'config.json').read_text())
  del fields['hidden_size']
  (directory / 'config.json').write_text(json.dumps(fields))
  with pytest.raises(ValueError, match=r'Mistral.* must state hidden_size'):
    load_pretrained(directory)


def test_names_a_missing_shard(tmp_path):
  directory = copy_of('llama3', tmp_path)
  (directory / 'model-00002-of-00002.safetensors').unlink()
  with pytest.raises(
    ValueError, match=r'00002-of-00002\S+ must be a regular file'
  ):
    load_pretrained(directory)


def test_names_a_truncated_file(tmp_path):
  directory = copy_of('mistral', tmp_path)
  file = directory / 'model.safetensors'
  size = file.stat().st_size
  file.write_bytes(file.read_bytes()[:-100])
  message = rf'model\.safetensors must have {size} bytes, .*got {size - 100}'
  with pytest.raises(ValueError, match=message):
    load_pretrained(directory)
  file.write_bytes(b'123')
  with pytest.raises(ValueError, match=r'model\.safetensors must have a head'):
    load_pretrained(directory)
  file.write_bytes((4).to_bytes(8, 'little') + b'{{{{')
  with pytest.raises(ValueError, match='the header must be JSON'):
    load_pretrained(directory)


def test_names_an_invalid_index(tmp_path):
  directory = copy_of('llama3', tmp_path)
  index = directory / 'model.safetensors.index.json'
  for text, message in (
    ('{', 'must be JSON'),
    ('[]', 'must be a JSON object, got a list'),
    ('{}', 'must have a weight_map'),
    ('{"weight_map": []}', 'must have a weight_map'),
    ('{"weight_map": {"a": 3}}', 'a must be in a .safetensors file'),
    ('{"weight_map": {"a": "/etc/passwd"}}', ".*got '/etc/passwd'"),
    ('{"weight_map": {"a": "../b.safetensors"}}', '.*of the same directory'),
    ('{"weight_map": {"a": "/b.safetensors"}}', '.*of the same directory'),
  ):
    index.write_text(text)
    with pytest.raises(ValueError, match=rf'index\.json:? {message}'):
      load_pretrained(directory)


def test_refuses_invalid_tensors(tmp_path):
  directory = copy_of('mistral', tmp_path)
  replace_tensors(directory, **{GATE: None})
  with pytest.raises(ValueError, match=rf'must hold {GATE} of shape \(24, 16'):
    load_pretrained(directory)
  replace_tensors(directory, **{GATE: np.zeros((24, 16), np.int8)})
  with pytest.raises(ValueError, match=rf'{GATE} must be one of .*got I8'):
    load_pretrained(directory)


def test_refuses_empty_directories_and_unknown_names(tmp_path):
  with pytest.raises(ValueError, match=r'must hold config\.json, got none'):
    load_pretrained(tmp_path)
  with pytest.raises(
    ValueError, match=r"name \(owner/name\), got 'no such/a/b'"
  ):
    load_pretrained('no such/a/b')
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match=r'config\.json must be JSON'):
    load_pretrained(tmp_path)
  copy = copy_of('qwen2', tmp_path)
  (copy / 'model.safetensors').unlink()
  with pytest.raises(ValueError, match=r'must hold model\.safetensors or'):
    load_pretrained(copy)


def test_refuses_layers_without_experts(tmp_path):
  directory = copy_of('qwen3_moe', tmp_path)
  edit(directory, mlp_only_layers=[1])
  with pytest.raises(
    ValueError, match=r'every layer of .* mlp_only_layers \[1\]'
  ):
    load_pretrained(directory)


def test_reads_published_mixture_configs(tmp_path):
  directory = copy_of('qwen3_moe', tmp_path)
  new = load_policy(directory)
  fields = json.loads((directory / 'config.json').read_text())
  fields['num_experts'] = fields.pop('num_local_experts')
  (directory / 'config.json').write_text(json.dumps(fields))
  assert load_policy(directory).config == new.config
  directory = copy_of('mixtral', tmp_path)
  fields = json.loads((directory / 'config.json').read_text())
  del fields['rope_parameters']
  (directory / 'config.json').write_text(json.dumps(fields))
  assert load_policy(directory).config.rope_theta == 1e6
