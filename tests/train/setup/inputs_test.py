# SPDX-License-Identifier: Apache-2.0
"""A run is resumed with the inputs it began with, and is refused otherwise."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from etils import epath
from train import process

from covrl.config import Config, ConfigError
from covrl.data import (
  JsonTokenizer,
  ListSource,
  Problem,
  SentencePieceTokenizer,
  train_sentencepiece,
)
from covrl.models import Lora, Policy, tiny
from covrl.run.checkpoint import (
  Checkpoint,
  CheckpointError,
  CheckpointStore,
)
from covrl.storage.fingerprints import directory_fingerprint
from covrl.tasks.task import Task
from covrl.tasks.text import text_task
from covrl.train.setup.inputs import (
  check_inputs,
  check_opened_run,
  input_fingerprints,
  warm_start_fingerprint,
  warm_start_of,
)

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden'
TOKENIZER = train_sentencepiece(['1', '2', '+'])
OTHER_END = SentencePieceTokenizer(TOKENIZER.to_bytes(), ['<s>'])
SUMS = [
  Problem(prompt=f'{n} + 1', reference=n + 1, source='sums', solution='2')
  for n in range(3)
]


class SourceWithoutFingerprint:
  """A source without a fingerprint."""

  names = ('sums',)

  def __len__(self):
    return 1

  def __getitem__(self, index):
    return SUMS[0]


def task(**changes):
  """A task with these changes of its fields."""
  sums = ListSource(SUMS)
  default_task = Task(
    tokenizer=TOKENIZER, train=sums, solved=sums, held_out=SUMS, rewards=[]
  )
  return dataclasses.replace(default_task, **changes)


def inputs(config=None, policy=None, networks=None, **changes):
  """Fingerprints of the inputs of a run, by name."""
  policy = policy or Policy(tiny(TOKENIZER.vocab_size))
  return input_fingerprints(
    config or Config(), task(**changes), policy, None, networks or {}
  )


def saved(fingerprints):
  """Returns a checkpoint that stores the fingerprints of inputs."""
  return Checkpoint(
    path=epath.Path('run/checkpoints/00000001'),
    position=1,
    metadata={'inputs': fingerprints},
    files={},
  )


def inputs_error(fingerprints, before):
  """Message with which a run with other inputs is refused."""
  with pytest.raises(ConfigError) as caught:
    check_inputs(Config(), fingerprints, saved(before), pytest.fail)
  return str(caught.value)


def test_another_configuration_of_the_model_is_refused():
  """Its parameters have the same shapes, and its logits are others."""
  model = tiny(TOKENIZER.vocab_size)
  other = dataclasses.replace(model, norm_eps=1e-3)
  message = inputs_error(inputs(policy=Policy(other)), inputs())
  assert 'configuration of the model' in message
  remat = dataclasses.replace(model, remat='everything')
  assert inputs(policy=Policy(remat)) == inputs()
  message = inputs_error(
    inputs(networks={'critic': Policy(other)}),
    inputs(networks={'critic': Policy(model)}),
  )
  assert message.startswith('configuration of the model of critic must be')


def test_other_adapters_of_the_pretrained_model_are_refused():
  """Of adapters that the run adds, the configuration is among its fields."""
  first, second = (
    Policy(
      dataclasses.replace(
        tiny(TOKENIZER.vocab_size), lora=Lora(rank=1, alpha=alpha)
      )
    )
    for alpha in (1.0, 3.0)
  )
  message = inputs_error(inputs(policy=second), inputs(policy=first))
  assert message.startswith('configuration of the model must be the same')
  config = Config()
  config.lora.rank = 1
  assert inputs(config, second) == inputs(config, first)


def test_the_same_inputs_are_accepted():
  check_inputs(Config(), inputs(), None, pytest.fail)
  check_inputs(Config(), inputs(), saved(inputs()), pytest.fail)


@pytest.mark.parametrize(
  ('changes', 'name'),
  [
    ({'train': ListSource(SUMS[:2])}, 'problems to train on'),
    ({'solved': ListSource(SUMS[:2])}, 'solved examples'),
    ({'held_out': SUMS[:2]}, 'held-out problems'),
    ({'tokenizer': train_sentencepiece(['1', '2', '+', '3'])}, 'tokenizer'),
    ({'tokenizer': OTHER_END}, 'special tokens'),
  ],
)
def test_changed_inputs_are_refused(changes, name):
  assert inputs_error(inputs(**changes), inputs()) == (
    f'{name} must be the same when a run is resumed, got others than when the'
    ' checkpoint was written; restore them or use another --workdir'
  )


def test_other_special_texts_of_a_tokenizer_are_refused():
  """As in tokenizer_config.json, beside the same tokenizer.json."""
  file = (GOLDEN / 'tokenizers' / 'bytes' / 'tokenizer.json').read_bytes()
  fingerprints = [
    inputs(tokenizer=JsonTokenizer(file, end_tokens=[0], special_tokens=texts))
    for texts in ((), ('Let',))
  ]
  message = inputs_error(*fingerprints)
  assert message.startswith('texts of special tokens must be the same')


def test_unknown_inputs_are_refused_unless_allowed():
  fingerprints = inputs(train=SourceWithoutFingerprint())
  assert fingerprints['problems to train on'] == ''
  warnings = []
  check_inputs(Config(), fingerprints, None, warnings.append)
  assert 'can be resumed only with checkpoint.allow_unknown_data' in warnings[0]
  for before in (fingerprints, inputs()):
    text = inputs_error(fingerprints, before)
    assert text.startswith('problems to train on must have a fingerprint')
    assert '--config.checkpoint.allow_unknown_data=true' in text
  assert 'got none: changes' in inputs_error(inputs(), fingerprints)
  config = Config()
  config.checkpoint.allow_unknown_data = True
  check_inputs(config, fingerprints, saved(fingerprints), warnings.append)
  assert 'remain unnoticed' in warnings[1]


def test_weights_under_adapters_are_inputs(tmp_path):
  weights = tmp_path / 'model.safetensors'
  weights.write_bytes(bytes(10**6))
  config = Config(pretrained=str(tmp_path))
  adapted = Policy(
    dataclasses.replace(
      tiny(TOKENIZER.vocab_size), lora=Lora(rank=1, alpha=1.0)
    )
  )
  name = 'pretrained weights'
  assert name not in inputs(config)
  before = inputs(config, adapted)
  assert before[name]
  warm_start = dataclasses.replace(saved({}), files={'a': {'sha256': '1'}})

  def open_run(before, shared=None):
    check_opened_run(
      config, task(), adapted, shared, saved(before), pytest.fail
    )

  open_run(before)
  shared = input_fingerprints(config, task(), adapted, warm_start, {})
  open_run(shared, warm_start)
  other_warm_start = dataclasses.replace(
    warm_start, files={'a': {'sha256': '2'}}
  )
  with pytest.raises(
    ConfigError, match='shared warm start must be the same as'
  ):
    open_run(shared, other_warm_start)
  weights.write_bytes(bytes(10**6 - 1) + b'1')
  assert name in inputs_error(inputs(config, adapted), before)
  with pytest.raises(ConfigError, match=f'{name} must be the same as in train'):
    open_run(before)
  # Weights in Orbax format are read instead of safetensors beside them.
  (tmp_path / 'orbax').mkdir()
  assert inputs(config, adapted)[name] == ''


def test_a_run_is_opened_with_the_tokenizer_and_problems_of_its_training():
  policy, before = Policy(tiny(TOKENIZER.vocab_size)), saved(inputs())
  warnings = []

  def open_run(before, **changes):
    check_opened_run(
      Config(), task(**changes), policy, None, before, warnings.append
    )

  # The training problems do not matter, and may have no fingerprint.
  open_run(before, train=SourceWithoutFingerprint(), solved=None)
  open_run(saved({}))
  open_run(dataclasses.replace(before, metadata={}))
  assert warnings == []
  open_run(before, held_out=SUMS[:2])
  (warning,) = warnings
  assert warning == (
    'held-out problems have changed since the checkpoint was written: results on'
    ' them are not those of the run'
  )
  with pytest.raises(ConfigError, match=r'^tokenizer must be the same as in'):
    open_run(before, tokenizer=train_sentencepiece(['1', '2', '+', '3']))


@pytest.mark.parametrize(
  ('file', 'text'),
  [
    ('chat_template.jinja', '### {{ messages[-1].content }}'),
    (
      'tokenizer_config.json',
      '{"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": "x"}',
    ),
    ('', 'Be brief.'),
  ],
)
def test_a_run_is_neither_opened_nor_resumed_with_another_prompt_format(
  tmp_path, file, text
):
  """The chat template is the pretrained model's, whose files may be updated."""
  model = shutil.copytree(GOLDEN / 'tokenizers' / 'bytes', tmp_path / 'model')
  config = Config(pretrained=str(model))
  config.rollout.max_prompt_length = 1000
  policy = Policy(tiny(320))

  def current_inputs():
    return input_fingerprints(config, text_task(config), policy, None, {})

  def open_run(inputs):
    check_opened_run(
      config, text_task(config), policy, None, saved(inputs), pytest.fail
    )

  before = current_inputs()
  open_run(before)
  if file:
    (model / file).write_text(text)
  else:
    config.data.system = text
  with pytest.raises(
    ConfigError, match=r'prompt format must be the same as in'
  ):
    open_run(before)
  assert 'prompt format must' in inputs_error(current_inputs(), before)
  # Checkpoints of earlier versions have neither it nor the special texts.
  del before['prompt format'], before['texts of special tokens']
  open_run(before)
  check_inputs(config, current_inputs(), saved(before), pytest.fail)


@pytest.mark.parametrize('size', [0, 1, 2**22, 2**22 + 1, 9 * 2**20])
def test_a_directory_is_recognised_by_names_and_contents(tmp_path, size):
  def fingerprint(name, content):
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    (folder / name).write_bytes(content)
    (folder / 'notes.txt').write_text(folder.name)
    return directory_fingerprint(epath.Path(folder), ('.bin',))

  content = bytes(size)
  original = fingerprint('a.bin', content)
  assert original == fingerprint('a.bin', content)
  others = [('b.bin', content), ('a.bin', content + b'\0')]
  if size:
    for index in (0, size // 3, size // 2, size - 1):
      other = bytearray(content)
      other[index] = 1
      others.append(('a.bin', bytes(other)))
  for other in others:
    assert fingerprint(*other) != original
  assert directory_fingerprint(epath.Path(tmp_path), ('.bin',)) == ''


def test_a_file_is_read_again_where_it_was_written_to(tmp_path):
  file = tmp_path / 'a.bin'
  file.write_bytes(bytes(100))
  times = file.stat().st_atime_ns, file.stat().st_mtime_ns
  before = directory_fingerprint(epath.Path(tmp_path), ('.bin',))
  assert before == directory_fingerprint(epath.Path(tmp_path), ('.bin',))
  time.sleep(0.02)  # above the resolution of time stamps
  file.write_bytes(bytes(99) + b'1')
  os.utime(file, ns=times)
  assert before != directory_fingerprint(epath.Path(tmp_path), ('.bin',))


def test_adapters_need_the_warm_start_of_their_training(tmp_path):
  """Without it their base would be random parameters, or the pretrained model."""
  config, store = Config(), CheckpointStore(tmp_path / 'warm_start', keep=1)
  model = tiny(TOKENIZER.vocab_size)
  policy = Policy(dataclasses.replace(model, lora=Lora(rank=1, alpha=1.0)))
  config.warm_start.steps = 4
  with pytest.raises(
    CheckpointError, match=r'base of the adapters in .*, got none$'
  ):
    warm_start_of(saved({}), config, store)
  store.save(3, {'w': np.zeros(2)}, {})
  with pytest.raises(CheckpointError, match='which is unfinished'):
    warm_start_of(saved({}), config, store)
  store.save(4, {'w': np.zeros(2)}, {})
  before = saved(warm_start_fingerprint(config, policy, store))
  own_warm_start = warm_start_of(before, config, store)
  assert own_warm_start is not None
  assert own_warm_start.position == 4
  # Checkpoints of earlier versions do not name it.
  assert warm_start_of(saved({}), config, store) == own_warm_start
  store.save(4, {'w': np.ones(2)}, {})
  with pytest.raises(ConfigError, match='trained on, got another one'):
    warm_start_of(before, config, store)
  assert warm_start_fingerprint(config, Policy(model), store) == {}
  config.warm_start.steps = 0
  assert warm_start_of(before, config, store) is None
  assert warm_start_fingerprint(config, policy, store) == {}


@pytest.mark.slow
def test_a_run_of_adapters_is_not_opened_or_resumed_without_its_warm_start(
  tmp_path,
):
  settings = {
    'lora__rank': 2,
    'warm_start__steps': 4,
    'logging__entropy_change_every': 0,
  }
  run = tmp_path / 'run'
  process.train('toy_plain', run, train__iterations=1, **settings)
  shutil.rmtree(run / 'warm_start')
  resumed = process.start('toy_plain', run, train__iterations=2, **settings)
  converted = subprocess.Popen(
    [sys.executable, *('-m', 'covrl.cli', 'convert', run, tmp_path / 'model')],
    env=process.ENVIRONMENT,
    stderr=subprocess.PIPE,
    text=True,
  )
  for command in (resumed, converted):
    error = command.communicate()[1]
    assert 'base of the adapters' in error
    assert error.endswith(', got none\n')
    assert command.returncode == 2
