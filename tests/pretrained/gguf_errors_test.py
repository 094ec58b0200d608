# SPDX-License-Identifier: Apache-2.0
"""GGUF files that are refused: the error names the field, tensor or file."""

import sys

import numpy as np
import pytest
from pretrained.changed_gguf import GOLDEN, write_changed_gguf

from covrl.cli import main
from covrl.pretrained import (
  load_policy,
  load_pretrained,
)
from covrl.pretrained.gguf import types
from covrl.pretrained.gguf.header import read_header
from covrl.storage import as_path


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (
      {'general__architecture': 'mamba'},
      'general.architecture must be one of llama, .*got mamba',
    ),
    (
      {'without': ['llama.embedding_length']},
      'llama.embedding_length must be an integer, got none',
    ),
    (
      {'llama__block_count': 'many'},
      'llama.block_count must be an integer, got many',
    ),
    ({'llama__block_count': 10**9}, 'num_hidden_layers must be an integer of'),
    (
      {'llama__attention__head_count': 0},
      'llama.attention.head_count must be at least 1',
    ),
    ({'llama__expert_count': 8}, 'llama.expert_count must be 0 for .*got 8'),
    (
      {'llama__rope__dimension_count': 4},
      'llama.rope.dimension_count must be 8, the width',
    ),
    (
      {'llama__rope__scaling__type': 'longrope'},
      'llama.rope.scaling.type must be none, linear or yarn, got longrope',
    ),
    ({'split__count': 3}, r'split\.count must be 1, .*got 3'),
    (
      {'tokenizer__ggml__model': 'bert'},
      r'tokenizer\.ggml\.model must be gpt2 or llama, got bert',
    ),
    (
      {'tokenizer__ggml__pre': 'new'},
      r'tokenizer\.ggml\.pre must be one of gpt-2, .*got new',
    ),
    (
      {'tokenizer__ggml__merges': ['a b', 'xyz zyx']},
      'element 0 of tokenizer.ggml.merges must be two tokens|element 1 of',
    ),
    (
      {'without': ['tokenizer.ggml.merges']},
      'tokenizer.ggml.merges must be a list of texts, got none',
    ),
    (
      {'tokenizer__ggml__eos_token_id': 5000},
      'tokenizer.ggml.eos_token_id must be below 303',
    ),
    (
      {'tokenizer__ggml__token_type': [1, 2]},
      'tokenizer.ggml.token_type must be 303 types',
    ),
    (
      {'tokenizer__ggml__add_eos_token': True},
      'tokenizer.ggml.add_eos_token must be false, got True',
    ),
    (
      {'tensors': {'rope_freqs.weight': np.array([1, 7, 2, 9], np.float32)}},
      'rope_freqs.weight must hold 4 factors of Llama 3 scaling',
    ),
  ],
)
def test_names_unsupported_fields(change, message, tmp_path):
  file = write_changed_gguf(tmp_path, **change)
  with pytest.raises(ValueError, match=rf'changed\.gguf: .*{message}'):
    load_policy(file)


def test_names_tensors_that_no_model_has(tmp_path):
  file = write_changed_gguf(
    tmp_path, tensors={'blk.0.ssm': np.ones((2, 2), np.float32)}
  )
  with pytest.raises(
    ValueError, match=r'gguf must hold tensors of a Lla.* got blk\.0\.ssm'
  ):
    load_pretrained(file)


def test_names_numbers_that_are_not_finite(tmp_path):
  file = write_changed_gguf(tmp_path)
  tensor = read_header(as_path(file))[1]['output_norm.weight']
  content = bytearray(file.read_bytes())
  content[tensor.start : tensor.start + 4] = np.float32(np.nan).tobytes()
  file.write_bytes(content)
  with pytest.raises(ValueError, match=r'model\.norm\.weight must be finite'):
    load_pretrained(file)


def test_names_settings_that_are_not_used(tmp_path):
  file = write_changed_gguf(tmp_path, llama__attention__new=3)
  with pytest.warns(
    UserWarning, match=r'not used: llama\.attention\.new \(3\)'
  ):
    load_policy(file)


def test_names_missing_files(tmp_path, capsys):
  with pytest.raises(
    ValueError, match=r'a\.gguf must be a regular file, got none'
  ):
    load_policy(tmp_path / 'a.gguf')
  with pytest.raises(SystemExit):
    main(['convert', str(tmp_path / 'a.gguf'), str(tmp_path / 'out')])
  assert 'a.gguf must be a regular file, got none' in capsys.readouterr().err


def test_names_the_missing_library(tmp_path, monkeypatch):
  types._library.cache_clear()
  types._find_type.cache_clear()
  monkeypatch.setitem(sys.modules, 'gguf', None)
  file = tmp_path / 'm.gguf'
  file.write_bytes((GOLDEN / 'llama.gguf').read_bytes())
  with pytest.raises(ValueError, match=r"pip install 'covrl\[gguf\]'"):
    load_policy(file)
