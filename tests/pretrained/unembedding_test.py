# SPDX-License-Identifier: Apache-2.0
"""Exports of policies whose unembedding is not their embedding."""

import json

import pytest
from pretrained.fixtures import (
  assert_trees_equal,
  copy_of,
  loaded,
  replace_tensors,
  tensors_of,
)

from covrl.config import CountdownConfig
from covrl.data import countdown_tokenizer
from covrl.models import Policy
from covrl.pretrained import (
  as_pretrained,
  convert,
  load_pretrained,
  save_pretrained,
)


@pytest.mark.filterwarnings('ignore:.*differs from:UserWarning')
def test_a_trained_policy_keeps_an_unembedding_of_its_own(tmp_path):
  """The model that training started from ties embeddings that differ."""
  source = copy_of('gemma2', tmp_path)
  embedding = tensors_of(source)['model.embed_tokens.weight']
  replace_tensors(source, **{'lm_head.weight': embedding + 1})
  policy, params = load_pretrained(source)
  assert not policy.config.tied_embeddings
  exported = as_pretrained(
    Policy(policy.config), str(source), countdown_tokenizer(CountdownConfig())
  )
  save_pretrained(tmp_path / 'saved', exported, params)
  before, after = (
    json.loads((directory / 'config.json').read_text())
    for directory in (source, tmp_path / 'saved')
  )
  assert after == before | {'tie_word_embeddings': False}
  reloaded, reloaded_params = load_pretrained(tmp_path / 'saved')
  assert reloaded.config == policy.config
  assert_trees_equal(params, reloaded_params)


@pytest.mark.parametrize('output_format', ['model', 'orbax'])
def test_refuses_an_unembedding_beside_tied_embeddings(output_format, tmp_path):
  policy, params = loaded('gemma2')
  head = params['embedding'].T
  with pytest.raises(ValueError, match=r'head absent, got \('):
    convert(
      policy,
      params | {'head': head},
      tmp_path / 'out',
      output_format=output_format,
    )
  assert not (tmp_path / 'out').exists()
