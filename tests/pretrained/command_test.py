# SPDX-License-Identifier: Apache-2.0
"""Commands applied to the directory of a pretrained model."""

import json
import pathlib

import jax
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from pretrained.fixtures import MODELS, assert_trees_equal, tensors_of

from covrl.cli import main
from covrl.data import JsonTokenizer
from covrl.models import Policy, tiny
from covrl.pretrained import load_policy, load_pretrained, save_pretrained

TOKENIZER = (
  pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers' / 'bytes'
)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A random Llama with a tokenizer and a chat template."""
  policy = Policy(tiny(320))
  directory = tmp_path_factory.mktemp('pretrained') / 'model'
  save_pretrained(directory, policy, policy.init(jax.random.key(0)))
  for file in TOKENIZER.iterdir():
    if file.name not in ('config.json', 'golden.json'):
      (directory / file.name).write_bytes(file.read_bytes())
  return directory


def test_sample_uses_a_pretrained_model(model, capsys):
  options = ['--count=2', '--max_length=4', '--seed=3']
  main(['sample', str(model), 'What is 1 + 1?', *options])
  plain = capsys.readouterr().out
  assert plain.count(' nats  ') == 2
  main(['sample', str(model), 'What is 1 + 1?', '--chat', *options])
  assert capsys.readouterr().out != plain


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (['--template_variables={}'], 'needs a pretrained model and --chat'),
    (['--chat', '--template_variables=['], 'must be a JSON object such as'),
  ],
)
def test_template_variables_need_a_template(options, message, model, capsys):
  with pytest.raises(SystemExit):
    main(['sample', str(model), 'What?', *options])
  assert message in capsys.readouterr().err


def test_convert_exports_a_model(tmp_path, capsys):
  main(
    [
      'convert',
      str(MODELS / 'llama3'),
      str(tmp_path / 'wide'),
      '--dtype=float32',
    ]
  )
  wide = tensors_of(tmp_path / 'wide')
  for name, tensor in tensors_of(MODELS / 'llama3').items():
    assert wide[name].dtype == np.float32
    np.testing.assert_array_equal(wide[name], tensor.astype(np.float32))
  main(['convert', str(tmp_path / 'wide'), str(tmp_path / 'copy'), '--orbax'])
  assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / 'copy')
  assert not list((tmp_path / 'copy').glob('*.safetensors'))
  policy, params = load_pretrained(tmp_path / 'wide')
  again, params_again = load_pretrained(tmp_path / 'copy')
  assert again == policy
  assert_trees_equal(params, params_again)
  assert load_policy(tmp_path / 'copy').files == policy.files


def test_export_keeps_tokenizer_and_generation_settings(model, tmp_path):
  policy, params = load_pretrained(model)
  save_pretrained(tmp_path / 'out', policy, params)
  file = (tmp_path / 'out' / 'tokenizer.json').read_bytes()
  assert JsonTokenizer(file, end_tokens=['<|im_end|>']).end_ids == (302,)
  about = json.loads((tmp_path / 'out' / 'generation_config.json').read_text())
  assert about == {'eos_token_id': [302, 300]}


def test_reports_invalid_models_in_one_sentence(tmp_path, capsys, monkeypatch):
  def offline(name, **options):
    raise LocalEntryNotFoundError(f'{name} is not here. Try again later.')

  monkeypatch.setattr('huggingface_hub.snapshot_download', offline)
  with pytest.raises(SystemExit):
    main(['convert', 'someone/missing', str(tmp_path / 'out')])
  error = capsys.readouterr().err
  assert error.endswith('from the hub: someone/missing is not here\n')
  assert not (tmp_path / 'out').exists()
