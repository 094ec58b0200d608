# SPDX-License-Identifier: Apache-2.0
"""The base of adapters that other programs remove or change during a run."""

import dataclasses
import shutil
import time
import types
from typing import Any

import numpy as np
import pytest
from train import process
from train.process import metric_lines

from covrl.config import Config
from covrl.models import Lora, Policy, tiny
from covrl.run.checkpoint import CheckpointStore
from covrl.train.setup.adapter_base_files import AdapterBaseFiles
from covrl.train.setup.inputs import warm_start_fingerprint

PARAMS = {'w': np.arange(3.0, dtype=np.float32)}
STATE: Any = types.SimpleNamespace(frozen={'base': PARAMS})
LORA = Policy(dataclasses.replace(tiny(16), lora=Lora(rank=1, alpha=1.0)))


def make_base(store, policy=LORA, shared=None, pretrained=''):
  """Returns the base of a run and the list of its warnings."""
  run: Any = types.SimpleNamespace(policy=policy, shared_warm_start=shared)
  config, warnings = Config(pretrained=pretrained), []
  config.warm_start.steps = 0 if pretrained else 4
  return AdapterBaseFiles(run, config, store, warnings.append), config, warnings


def make_store(directory):
  store = CheckpointStore(directory, keep=1)
  store.save(4, PARAMS, {'inputs': {'a': 'b'}})
  return store


@pytest.mark.parametrize('part', ['', '00000004', '00000004/arrays/d'])
def test_a_warm_start_that_is_removed_is_written_again(tmp_path, part):
  store = make_store(tmp_path / 'warm_start')
  base, config, warnings = make_base(store)
  assert base.restore_if_lost(STATE) == {}
  assert warnings == []
  shutil.rmtree(tmp_path / 'warm_start' / part)
  changed = base.restore_if_lost(STATE)
  (text,) = warnings
  assert text.endswith(
    '00000004 was removed or changed while the run used it; it is written again'
  )
  assert changed == base.fingerprint() != {}
  assert changed == warm_start_fingerprint(config, LORA, store)
  own = store.latest()
  assert own is not None
  assert own.metadata == {'inputs': {'a': 'b'}}
  assert own.restore(PARAMS)['w'].tolist() == PARAMS['w'].tolist()
  assert base.restore_if_lost(STATE) == {}
  assert len(warnings) == 1


def test_a_shared_warm_start_that_is_removed_is_reported_once(tmp_path):
  store = make_store(tmp_path / 'warm_start')
  base, _, warnings = make_base(store, shared=store.latest())
  assert (base.restore_if_lost(STATE), base.fingerprint(), warnings) == (
    {},
    {},
    [],
  )
  shutil.rmtree(tmp_path / 'warm_start')
  for _ in range(2):
    assert base.restore_if_lost(STATE) == {}
  (text,) = warnings
  assert 'the base of the adapters, was removed or changed' in text
  assert not (tmp_path / 'warm_start').exists()


@pytest.mark.parametrize('change', ['removed', 'replaced'])
def test_a_pretrained_base_that_is_changed_is_reported_once(tmp_path, change):
  model, file = tmp_path / 'model', tmp_path / 'model' / 'model.safetensors'
  model.mkdir()
  file.write_bytes(b'weights')
  (model / 'config.json').write_text('{}')
  store = CheckpointStore(tmp_path / 'warm_start', keep=1)
  base, _, warnings = make_base(store, pretrained=str(model))
  assert (base.restore_if_lost(STATE), base.fingerprint(), warnings) == (
    {},
    {},
    [],
  )
  if change == 'removed':
    shutil.rmtree(model)
  else:
    file.write_bytes(b'changed')
  for _ in range(2):
    assert base.restore_if_lost(STATE) == {}
  (text,) = warnings
  assert text.startswith(f'{model}, the base of the adapters, was removed')


def test_runs_without_adapters_have_no_base(tmp_path):
  store = make_store(tmp_path / 'warm_start')
  base, _, warnings = make_base(store, policy=Policy(tiny(16)))
  shutil.rmtree(tmp_path / 'warm_start')
  assert (base.restore_if_lost(STATE), base.fingerprint(), warnings) == (
    {},
    {},
    [],
  )


@pytest.mark.slow
def test_a_run_whose_warm_start_is_removed_can_be_resumed(tmp_path):
  settings = {
    'lora__rank': 2,
    'warm_start__steps': 4,
    'logging__entropy_change_every': 0,
  }
  workdir = tmp_path / 'run'
  started = process.start('toy_plain', workdir, train__iterations=2, **settings)
  while not metric_lines(workdir, 'train') and started.poll() is None:
    time.sleep(0.05)
  shutil.rmtree(workdir / 'warm_start')
  error = started.communicate()[1]
  assert started.returncode == 0, error
  assert 'was removed or changed while the run used it' in error
  process.train('toy_plain', workdir, train__iterations=3, **settings)
