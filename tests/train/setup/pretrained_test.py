# SPDX-License-Identifier: Apache-2.0
"""Training from a pretrained model, and exporting the result."""

import contextlib
import dataclasses
import json
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tokenizers
from pretrained.fixtures import MODELS, tensors_of
from train.process import RECIPES, metric_lines, train

from covrl.cli import main
from covrl.config import Config, ConfigError
from covrl.data import JsonTokenizer
from covrl.models import Lora, Policy, tiny
from covrl.pretrained import (
  load_policy,
  load_pretrained,
  load_tokenizer,
  save_pretrained,
)
from covrl.train import CheckpointStore
from covrl.train.networks import critic
from covrl.train.networks.init import check_network_tokenizers
from covrl.train.setup import restore
from covrl.train.setup.initial_policy import with_adapters
from covrl.train.setup.restore import open_run
from covrl.train.warnings.pretrained import pretrained_warnings

RECIPE = 'toy_pretrained'
LORA = {'lora__rank': 2, 'lora__alpha': 4.0, 'lora__targets': 'query,down'}


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """Returns a golden checkpoint with a tokenizer of digits and a colon."""
  directory = tmp_path_factory.mktemp('models') / 'qwen2'
  shutil.copytree(MODELS / 'qwen2', directory)
  words = [*map(str, range(10)), ':', '<unk>']
  words = [f'<{index}>' for index in range(48 - len(words))] + words
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(
      {word: index for index, word in enumerate(words)}, unk_token='<unk>'
    )
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  tokenizer.save(str(directory / 'tokenizer.json'))
  return directory


@pytest.fixture(scope='module')
def full_run(model, tmp_path_factory):
  """Returns a finished run that trains all parameters."""
  workdir = tmp_path_factory.mktemp('runs') / 'whole'
  train(RECIPE, workdir, pretrained=model)
  return workdir


@pytest.fixture(scope='module')
def adapter_run(model, tmp_path_factory):
  """Returns a finished run that trains adapters."""
  workdir = tmp_path_factory.mktemp('runs') / 'adapted'
  train(RECIPE, workdir, pretrained=model, **LORA)
  return workdir


def arrays(workdir):
  """Returns the arrays of the latest checkpoint."""
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  with ocp.StandardCheckpointer() as checkpointer:
    return checkpointer.restore(saved.path / 'arrays')


def logits_of(policy, params):
  tokens = np.arange(40, dtype=np.int32).reshape(2, 20)
  return np.asarray(jax.jit(policy.logits)(params, tokens))


@pytest.mark.parametrize('run', ['full_run', 'adapter_run'])
def test_trains_all_parameters_or_adapters(run, request):
  lines = metric_lines(request.getfixturevalue(run))
  trained = [line for line in lines if line['phase'] == 'train']
  assert [line['iteration'] for line in trained] == [0, 0, 1, 1]
  assert all(line['gradient_norm'] > 0 for line in trained)
  # Sampler and trainer agree, with and without adapters.
  assert all(line['sampler_gap_max'] < 1e-4 for line in trained)
  assert any(abs(line['realised_entropy_change']) > 1e-6 for line in trained)
  assert {line['phase'] for line in lines} == {'eval', 'train'}


def test_a_newer_checkpoint_without_manifest_is_reported(
  full_run, tmp_path, capfd
):
  """As in a copy that was made while the run saved it."""
  run = shutil.copytree(full_run, tmp_path / 'run')
  for name in ('00000099', '00000001', 'notes'):
    (run / 'checkpoints' / name / 'arrays').mkdir(parents=True)
  latest = CheckpointStore(run / 'checkpoints', keep=1).latest()
  assert latest is not None
  with open_run(str(run)) as opened:
    assert opened.iteration == latest.metadata['iteration']
  (warning,) = [
    line for line in capfd.readouterr().err.splitlines() if 'manifest' in line
  ]
  assert warning == (
    f'covrl: warning: {run}/checkpoints/00000099 has no manifest.json, as where it'
    ' is being written or was copied in part: the policy is that of'
    f' {latest.path.name}'
  )


def test_only_adapters_are_trained_and_stored(adapter_run):
  names = arrays(adapter_run).keys()
  adapters = {
    f'layers.{module}_adapter.{matrix}'
    for module in ('attention.query', 'mlp.down')
    for matrix in 'ab'
  }
  for part in ('trainable', 'frozen.reference'):
    prefix = f'state.{part}.'
    stored_names = {
      name.removeprefix(prefix) for name in names if prefix in name
    }
    assert stored_names == adapters
  moments = [name for name in names if '.mu.' in name]
  assert len(moments) == len(adapters)
  assert not any('embedding' in name or 'final_norm' in name for name in names)


def test_a_resumed_run_equals_the_uninterrupted_one(
  model, adapter_run, tmp_path
):
  workdir = tmp_path / 'resumed'
  settings = {'pretrained': model, 'logging__samples': 0, **LORA}
  train(RECIPE, workdir, train__iterations=1, **settings)
  train(RECIPE, workdir, **settings)
  actual_arrays, expected_arrays = arrays(workdir), arrays(adapter_run)
  assert actual_arrays.keys() == expected_arrays.keys()
  for name, leaf in expected_arrays.items():
    assert (
      np.asarray(actual_arrays[name]).tobytes() == np.asarray(leaf).tobytes()
    ), name


def test_converts_a_run_to_a_model(full_run, model, tmp_path, capsys):
  main(['convert', str(full_run), str(tmp_path / 'out')])
  assert capsys.readouterr().out == f'{tmp_path / "out"}\n'
  policy, params = load_pretrained(tmp_path / 'out')
  with open_run(str(full_run)) as run:
    # Unsharded: sums in another order may differ by more than the tolerance.
    trained = jax.device_get(run.params)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(params), trained)
  expected = logits_of(run.policy, trained)
  np.testing.assert_allclose(logits_of(policy, params), expected, atol=1e-5)
  # Files of the model are kept, weights have changed.
  for name in ('config.json', 'generation_config.json', 'tokenizer.json'):
    before, after = (
      json.loads((d / name).read_text()) for d in (model, tmp_path / 'out')
    )
    assert before == after
  before, after = tensors_of(model), tensors_of(tmp_path / 'out')
  assert before.keys() == after.keys()
  assert any((before[name] != after[name]).any() for name in before)
  main(['convert', str(full_run), str(tmp_path / 'half'), '--dtype=bfloat16'])
  assert load_policy(tmp_path / 'half').config.dtype == 'bfloat16'


def test_converts_a_run_to_adapters_or_a_merged_model(
  adapter_run, model, tmp_path, capsys
):
  with open_run(str(adapter_run)) as run:
    expected = logits_of(run.policy, run.params)
  assert np.abs(expected - logits_of(*load_pretrained(model))).max() > 1e-3
  for form in ('--adapter', '--orbax'):
    main(['convert', str(adapter_run), str(tmp_path / form), form])
    actual = logits_of(*load_pretrained(tmp_path / form))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
  main(['convert', str(tmp_path / '--adapter'), str(tmp_path / 'merged')])
  actual = logits_of(*load_pretrained(tmp_path / 'merged'))
  np.testing.assert_allclose(actual, expected, atol=1e-5)
  adapter_config = json.loads(
    (tmp_path / '--adapter/adapter_config.json').read_text()
  )
  assert adapter_config['base_model_name_or_path'] == str(model)
  assert adapter_config['target_modules'] == ['down_proj', 'q_proj']
  assert load_policy(tmp_path / 'merged').config.lora is None
  capsys.readouterr()
  main(['sample', str(tmp_path / '--adapter'), '1 2 3 :', '--max_length=4'])
  assert capsys.readouterr().out.count(' nats  ') == 4


def test_adapters_on_a_warm_start_are_not_written_without_it(
  adapter_run, tmp_path, capsys, monkeypatch
):
  @contextlib.contextmanager
  def open_warm_started(*arguments, **options):
    with open_run(*arguments, **options) as opened:
      opened.config.warm_start.steps = 4
      yield opened

  monkeypatch.setattr(restore, 'open_run', open_warm_started)
  with pytest.raises(SystemExit):
    main(['convert', str(adapter_run), str(tmp_path / 'adapter'), '--adapter'])
  error = capsys.readouterr().err
  assert 'warm_start.steps of the run must be 0 with --adapter, got 4:' in error
  assert not (tmp_path / 'adapter').exists()


@pytest.mark.parametrize('run', ['full_run', 'adapter_run'])
def test_an_export_has_the_end_tokens_of_the_run(
  run, request, model, tmp_path, capsys, monkeypatch
):
  """The task of a recipe may have others than the pretrained model."""
  tokenizer = JsonTokenizer.load(model / 'tokenizer.json', end_tokens=['7'])

  @contextlib.contextmanager
  def open_with_tokenizer(*arguments, **options):
    with open_run(*arguments, **options) as opened:
      task = dataclasses.replace(opened.task, tokenizer=tokenizer)
      yield dataclasses.replace(opened, task=task)

  monkeypatch.setattr(restore, 'open_run', open_with_tokenizer)
  workdir = str(request.getfixturevalue(run))
  for form in ('--dtype=float32', '--orbax'):
    main(['convert', workdir, str(tmp_path / form), form])
    assert load_tokenizer(tmp_path / form).end_ids == tokenizer.end_ids
  if run == 'adapter_run':
    with pytest.raises(SystemExit):
      main(['convert', workdir, str(tmp_path / 'adapter'), '--adapter'])
    error = capsys.readouterr().err
    assert 'end tokens of the run must include those of' in error


def test_adapters_can_be_trained_further(adapter_run, tmp_path, capsys):
  main(['convert', str(adapter_run), str(tmp_path / 'adapter'), '--adapter'])
  workdir = tmp_path / 'run'
  train(RECIPE, workdir, pretrained=tmp_path / 'adapter', train__iterations=1)
  before, after = arrays(adapter_run), arrays(workdir)
  name = 'state.frozen.reference.layers.mlp.down_adapter.b'
  np.testing.assert_array_equal(
    after[name], before['state.trainable.layers.mlp.down_adapter.b']
  )
  capsys.readouterr()
  with pytest.raises(SystemExit):
    main(
      [
        'train',
        f'--config={RECIPES / RECIPE}.py',
        f'--workdir={tmp_path / "other"}',
        f'--config.pretrained={tmp_path / "adapter"}',
        '--config.lora.rank=2',
      ]
    )
  error = capsys.readouterr().err
  assert 'lora.rank must be 0 where pretrained is an adapter' in error


def test_adapters_are_not_put_on_a_warm_start_of_their_base(
  adapter_run, tmp_path, capsys
):
  main(['convert', str(adapter_run), str(tmp_path / 'adapter'), '--adapter'])
  config = Config(pretrained=str(tmp_path / 'adapter'))
  config.warm_start.steps = 0
  assert with_adapters(tiny(48), config).lora is not None
  config.warm_start.steps = 3
  with pytest.raises(
    ConfigError,
    match=r'warm_start\.steps must be 0 where pretrained is an adapter',
  ):
    with_adapters(tiny(48), config)


def test_frozen_parameters_have_the_compute_dtype(model):
  mixed = dataclasses.replace(tiny(48), dtype='bfloat16')
  config = Config(pretrained=str(model))
  config.lora.rank, config.warm_start.steps = 2, 0
  assert with_adapters(mixed, config).param_dtype == 'bfloat16'
  config.lora.rank = 0
  assert with_adapters(mixed, config) == mixed
  config.lora.rank, config.warm_start.steps = 2, 5
  assert with_adapters(mixed, config).param_dtype == 'float32'


def test_a_recipe_that_ignores_the_pretrained_configuration_is_reported(
  model, tmp_path
):
  """Weights fit into models that compute differently."""
  policy, tokenizer = load_policy(model), load_tokenizer(model)
  trained_so = dataclasses.replace(
    policy.config,
    dtype='bfloat16',
    remat='everything',
    lora=Lora(rank=1, alpha=1.0),
  )
  name = str(model)
  assert not [*pretrained_warnings('', Policy(tiny(8)), tokenizer)]
  assert not [*pretrained_warnings(name, Policy(trained_so), tokenizer)]
  other = dataclasses.replace(policy.config, norm_eps=0.5, windows=(3, 3))
  (warning,) = pretrained_warnings(name, Policy(other), tokenizer)
  assert warning == (
    f"the recipe's model has another windows, norm_eps than {model}, whose weights it"
    ' takes'
  )
  other_model = shutil.copytree(model, tmp_path / 'model')
  file = other_model / 'tokenizer.json'
  file.write_text(file.read_text().replace('"<3>"', '"<three>"'))
  (warning,) = pretrained_warnings(name, policy, load_tokenizer(other_model))
  assert warning == (
    "token 3 is '<three>' in the tokenizer of the recipe's task and '<3>' in that of"
    f' {model}, whose weights the model takes'
  )


def test_an_export_with_another_configuration_keeps_the_special_tokens(
  model, tmp_path
):
  policy, params = load_pretrained(model)
  changed = dataclasses.replace(
    policy, config=dataclasses.replace(policy.config, norm_eps=0.5)
  )
  save_pretrained(tmp_path / 'out', changed, params)
  before, after = (
    json.loads((directory / 'config.json').read_text())
    for directory in (model, tmp_path / 'out')
  )
  assert after['rms_norm_eps'] == 0.5
  for name in ('eos_token_id', 'max_position_embeddings'):
    assert after[name] == before[name]


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (lambda words: words, ''),
    # Unused in one of the models.
    (lambda words: ['', *words[1:]], ''),
    (
      lambda words: [words[1], words[0], *words[2:]],
      "the network 'critic' must have the tokenizer of the policy, in which token 0"
      " is '<0>', got '<1>' in {directory}",
    ),
    (None, "whether the network 'critic' reads the tokens as the policy does"),
  ],
)
def test_networks_with_another_tokenizer_are_refused(
  model, tmp_path, edit, message
):
  directory = tmp_path / 'critic'
  shutil.copytree(model, directory)
  file = directory / 'tokenizer.json'
  if edit is None:
    file.unlink()
  else:
    fields = json.loads(file.read_text())
    vocabulary = fields['model']['vocab']
    words = edit(sorted(vocabulary, key=vocabulary.get))
    fields['model']['vocab'] = {word: i for i, word in enumerate(words)}
    file.write_text(json.dumps(fields))
  config = Config()
  config.critic.initial, warnings = str(directory), []

  def check():
    check_network_tokenizers(
      {'critic': critic(config)}, load_tokenizer(model), warnings.append
    )

  if edit is None:
    check()
    assert [text.startswith(message) for text in warnings] == [True]
  elif message:
    with pytest.raises(ConfigError) as error:
      check()
    assert str(error.value) == message.format(directory=directory)
  else:
    check()
    assert warnings == []


def test_evaluates_a_pretrained_model_with_a_recipe(
  adapter_run, model, tmp_path, capsys
):
  main(['convert', str(adapter_run), str(tmp_path / 'adapter'), '--adapter'])
  config = f'--config={RECIPES / RECIPE}.py'
  capsys.readouterr()
  main(['evaluate', str(tmp_path / 'adapter'), config])
  # Same result as the run's last evaluation.
  last = [
    line for line in metric_lines(adapter_run) if line['phase'] == 'eval'
  ][-1]
  assert f'{last["mean@2"]:.4f}' in capsys.readouterr().out
