# SPDX-License-Identifier: Apache-2.0
"""Untrusted weight files and configurations: damaged, malicious, contradictory."""

import json
import os

import numpy as np
import pytest
from pretrained.fixtures import (
  assert_trees_equal,
  copy_of,
  edit_config,
  loaded,
  replace_tensors,
  tensors_of,
)

from covrl.pretrained import (
  convert,
  load_policy,
  load_pretrained,
  save_pretrained,
)
from covrl.pretrained.save import model_files
from covrl.pretrained.weights import tensors
from covrl.pretrained.weights.orbax_cache import save_orbax

GATE = 'model.layers.1.mlp.gate_proj.weight'
HEAD, EMBEDDING = 'lm_head.weight', 'model.embed_tokens.weight'
NORM = 'model.norm.weight'


def header_of(file):
  """Returns the header and the data of a safetensors file."""
  content = file.read_bytes()
  size = int.from_bytes(content[:8], 'little')
  return json.loads(content[8 : 8 + size]), content[8 + size :]


def with_header(directory, change):
  """Replaces the header of a checkpoint's only file."""
  file = directory / 'model.safetensors'
  header, data = header_of(file)
  text = change(header)
  text = json.dumps(header if text is None else text).encode()
  file.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def overlap(header):
  """Gives two tensors of one shape the same position in the file."""
  other = GATE.replace('gate', 'up')
  header[GATE]['data_offsets'] = header[other]['data_offsets']


def shift(header):
  """Moves the positions of all tensors by 32 bytes."""
  for entry in header.values():
    if 'data_offsets' in entry:
      entry['data_offsets'] = [n - 32 for n in entry['data_offsets']]


def entry_change(**fields):
  """Returns a change of one tensor's entry."""
  return lambda header: header[GATE].update(fields)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (overlap, r'must begin at \d+, where .* ends, got \d+'),
    (shift, r'data_offsets must be two positions, got \[-32'),
    (
      entry_change(data_offsets=[0, 10]),
      r'gate_proj\S+ must have 768 bytes, as its',
    ),
    (entry_change(data_offsets=[9, 3]), 'must have 768 bytes'),
    (entry_change(data_offsets=3), 'data_offsets must be two positions, got 3'),
    (
      entry_change(data_offsets=[0.0, 768.0]),
      'data_offsets must be two positions',
    ),
    (entry_change(shape=[24, 17]), 'must have 816 bytes'),
    (
      entry_change(shape=[-24, -16]),
      r'shape must be a list of sizes, got \[-24',
    ),
    (entry_change(shape=[10**30]), r'must have 2\d+ bytes'),
    (entry_change(shape='24'), 'shape must be a list of sizes, got 24'),
    (
      entry_change(shape=[True, 2]),
      r'shape must be a list of sizes, got \[True',
    ),
    (entry_change(dtype=[]), r'must be one of F64, .* got \[\]'),
    (lambda header: header.update({GATE: 3}), 'must have dtype, shape and'),
    (lambda header: [], 'the header must be a JSON object, got a list'),
  ],
)
def test_refuses_invalid_headers(change, message, tmp_path):
  directory = copy_of('mistral', tmp_path)
  with_header(directory, change)
  with pytest.raises(ValueError, match=rf'model\.safetensors: .*{message}'):
    load_pretrained(directory)


def test_refuses_two_values_of_one_tensor(tmp_path):
  directory = copy_of('mistral', tmp_path)
  file = directory / 'model.safetensors'
  header, data = header_of(file)
  text = json.dumps(header)
  text = f'{text[:-1]}, "{NORM}": {json.dumps(header[GATE])}}}'.encode()
  file.write_bytes(len(text).to_bytes(8, 'little') + text + data)
  with pytest.raises(ValueError, match=rf'must be JSON, got two .* of {NORM}'):
    load_pretrained(directory)


def test_refuses_large_headers_before_reading_them(tmp_path):
  directory = copy_of('mistral', tmp_path)
  with (directory / 'model.safetensors').open('wb') as stream:
    stream.write((2**31).to_bytes(8, 'little'))
    stream.truncate(2**31 + 8)  # a sparse file
  with pytest.raises(ValueError, match='a header of at most 16777216 bytes'):
    load_pretrained(directory)
  with (directory / 'config.json').open('wb') as stream:
    stream.truncate(2**31)
  with pytest.raises(ValueError, match=r'config\.json must have at most 167'):
    load_pretrained(directory)


def test_refuses_json_that_is_nested_too_deeply_or_not_utf8(tmp_path):
  directory = copy_of('mistral', tmp_path)
  (directory / 'config.json').write_text('[' * 10**5)
  with pytest.raises(ValueError, match=r'config\.json must be JSON, got'):
    load_pretrained(directory)
  (directory / 'config.json').write_bytes(b'{"a": "\xff"}')
  with pytest.raises(ValueError, match=r'config\.json must be JSON, got'):
    load_pretrained(directory)


def test_refuses_pipes_and_devices(tmp_path):
  directory = copy_of('mistral', tmp_path)
  file = directory / 'model.safetensors'
  file.unlink()
  os.mkfifo(file)
  with pytest.raises(ValueError, match=r'safetensors must be a regular file'):
    load_pretrained(directory)
  file.unlink()
  file.symlink_to('/dev/zero')
  with pytest.raises(ValueError, match=r'safetensors must be a regular file'):
    load_pretrained(directory)
  for name in ('config.json', 'generation_config.json'):
    content = (directory / name).read_bytes()
    (directory / name).unlink()
    os.mkfifo(directory / name)
    with pytest.raises(ValueError, match=rf'{name} must be a regular file'):
      load_policy(directory)
    (directory / name).unlink()
    (directory / name).write_bytes(content)


def test_refuses_a_tensor_in_two_files(tmp_path):
  directory = copy_of('llama3', tmp_path)
  index = directory / 'model.safetensors.index.json'
  fields = json.loads(index.read_text())
  first, second = sorted(set(fields['weight_map'].values()))
  (directory / first).write_bytes((directory / second).read_bytes())
  with pytest.raises(ValueError, match=r'-00002-\S+ must not hold \S+, got it'):
    load_pretrained(directory)


def test_names_an_index_that_is_not_read(tmp_path):
  directory = copy_of('llama3', tmp_path)
  replace_tensors(directory)
  with pytest.warns(UserWarning, match=r'index\.json is not read, since model'):
    load_pretrained(directory)


def replace_file(file, content):
  """Replaces a file by another one at once, as a download does."""
  replacement = file.with_name('other')
  replacement.write_bytes(content)
  os.replace(replacement, file)


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda file: replace_file(file, file.read_bytes()), 'has changed'),
    (lambda file: file.write_bytes(file.read_bytes()), 'has changed'),
    (lambda file: os.truncate(file, 2000), r'must have \d+ bytes, got 2000'),
    (lambda file: file.unlink(), 'No such file'),
  ],
)
@pytest.mark.parametrize('read_number', [1, 5])
def test_weights_that_change_while_they_are_loaded_are_refused(
  change, message, read_number, tmp_path, monkeypatch
):
  """Otherwise a part of the parameters would be those of another file."""
  directory, calls = copy_of('mistral', tmp_path), []
  original_read = tensors.SafetensorsFiles.read_rows

  def read_rows(self, *arguments):
    calls.append(arguments)
    if len(calls) == read_number:
      change(directory / 'model.safetensors')
    return original_read(self, *arguments)

  monkeypatch.setattr(tensors.SafetensorsFiles, 'read_rows', read_rows)
  with pytest.raises((ValueError, OSError), match=message):
    load_pretrained(directory)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_names_numbers_that_are_not_finite(value, tmp_path):
  directory = copy_of('qwen2', tmp_path)
  gate = tensors_of(directory)[GATE].copy()
  gate[3, 5] = value
  replace_tensors(directory, **{GATE: gate})
  with pytest.raises(ValueError, match=f'{GATE} must be finite, got {value}'):
    load_pretrained(directory)


def test_names_numbers_that_another_dtype_cannot_hold(tmp_path):
  directory = copy_of('qwen2', tmp_path)
  gate = tensors_of(directory)[GATE].copy()
  gate[3, 5] = 1e6
  replace_tensors(directory, **{GATE: gate})
  load_pretrained(directory)
  with pytest.raises(ValueError, match=r'finite in float16, got 1e\+06; lo'):
    load_pretrained(directory, dtype='float16')


def test_writes_finite_numbers_only(tmp_path):
  policy, params = loaded('mistral')
  damaged = {**params, 'head': params['head'].at[0, 0].set(1e6)}
  with pytest.raises(ValueError, match='write: head must be finite in float16'):
    convert(
      policy,
      damaged,
      tmp_path / 'out',
      output_format='model',
      dtype='float16',
    )
  assert not (tmp_path / 'out').exists()


def test_writes_parameters_of_the_policy_only(tmp_path):
  policy, params = loaded('mistral')
  narrow_params = {**params, 'head': params['head'][:, :3]}
  for changed, message in (
    (narrow_params, r'policy, head \(16, 48\), got \(16, 3\)'),
    (loaded('qwen2')[1], 'params must have the shapes of the policy'),
    ({**params, 'head': np.nan * params['head']}, 'head must be finite'),
  ):
    with pytest.raises(ValueError, match=message):
      save_pretrained(tmp_path / 'out', policy, changed)
  assert not (tmp_path / 'out').exists()


def test_orbax_copies_of_another_config_are_refused(tmp_path):
  policy, params = loaded('mistral')
  save_orbax(tmp_path / 'out', model_files(policy, params), params)
  edit_config(tmp_path / 'out', vocab_size=49)
  with pytest.raises(
    ValueError, match=r'orbax must hold the weights of the .* instead'
  ):
    load_pretrained(tmp_path / 'out')


def test_a_damaged_orbax_copy_is_refused_in_one_sentence(tmp_path, capfd):
  policy, params = loaded('mistral')
  save_orbax(tmp_path / 'out', model_files(policy, params), params)
  for file in (tmp_path / 'out' / 'orbax').rglob('d/*'):
    file.write_bytes(file.read_bytes()[:-20])
  capfd.readouterr()
  with pytest.raises(ValueError, match='orbax must hold the weights'):
    load_pretrained(tmp_path / 'out')
  assert capfd.readouterr().err == ''


def test_orbax_copies_that_are_not_finite_are_refused(tmp_path):
  policy, params = loaded('mistral')
  damaged = {**params, 'head': params['head'].at[0, 0].set(np.nan)}
  save_orbax(tmp_path / 'out', model_files(policy, damaged), damaged)
  with pytest.raises(ValueError, match='out: head must be finite in float32'):
    load_pretrained(tmp_path / 'out')


def test_names_weights_that_were_not_downloaded(tmp_path):
  directory = copy_of('mistral', tmp_path)
  file = directory / 'model.safetensors'
  file.write_text('version https://git-lfs.github.com/spec/v1\noid sha256:ab\n')
  with pytest.raises(ValueError, match=f'{file} must .* pointer of Git LFS'):
    load_pretrained(directory)


def test_keeps_an_unembedding_that_the_config_ties(tmp_path):
  directory = copy_of('qwen2', tmp_path)
  embedding = tensors_of(directory)[EMBEDDING]
  head = embedding[::-1].copy()
  replace_tensors(directory, **{HEAD: head})
  with pytest.warns(UserWarning, match=f'{HEAD} differs from {EMBEDDING}'):
    policy, params = load_pretrained(directory)
  assert not policy.config.tied_embeddings
  np.testing.assert_array_equal(params['head'], head.T)
  save_pretrained(tmp_path / 'again', policy, params)
  reloaded, _ = load_pretrained(tmp_path / 'again')
  assert reloaded.config == policy.config
  np.testing.assert_array_equal(tensors_of(tmp_path / 'again')[HEAD], head)
  fields = json.loads((tmp_path / 'again' / 'config.json').read_text())
  assert fields['eos_token_id'] == [2, 3]


def test_takes_an_unembedding_that_repeats_the_embedding(tmp_path):
  directory = copy_of('qwen2', tmp_path)
  replace_tensors(directory, **{HEAD: tensors_of(directory)[EMBEDDING]})
  assert load_pretrained(directory)[0].config.tied_embeddings


@pytest.mark.parametrize('scale', [1.0, 1.5])
def test_names_rotary_frequencies_that_differ(scale, tmp_path):
  directory = copy_of('deepseek_math', tmp_path)
  config = loaded('deepseek_math')[0].config
  name = 'model.layers.0.self_attn.rotary_emb.inv_freq'
  stored = (config.frequencies[0] * scale).astype(np.float32)
  replace_tensors(directory, **{name: stored})
  if scale == 1.0:
    load_pretrained(directory)
  else:
    with pytest.warns(UserWarning, match=f'{name} is not used, and differs'):
      load_pretrained(directory)


def test_names_matrices_that_an_interrupted_download_left_as_zeros(tmp_path):
  directory = copy_of('llama3', tmp_path)
  file = directory / 'model-00002-of-00002.safetensors'
  content = bytearray(file.read_bytes())
  begin = 8 + int.from_bytes(content[:8], 'little')
  content[begin:] = bytes(len(content) - begin)
  file.write_bytes(content)
  with pytest.warns(UserWarning, match=r'tensors are matrices of zeros, the'):
    load_pretrained(directory)


def test_weights_beside_an_orbax_copy_are_named(tmp_path):
  policy, params = loaded('mistral')
  directory = tmp_path / 'out'
  save_orbax(directory, model_files(policy, params), params)
  load_pretrained(directory)
  replace_tensors(directory, **{HEAD: np.ones(2, np.float32)})
  with pytest.warns(UserWarning, match='and not the safetensors beside them'):
    _, read = load_pretrained(directory)
  assert_trees_equal(read, params)
