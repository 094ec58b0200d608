# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that another program removes, damages or replaces."""

import shutil

import pytest
from train.small_loop import outcome, run

from covrl.config import ConfigError
from covrl.run.checkpoint import CheckpointStore


@pytest.mark.parametrize('number', [2, 3])
@pytest.mark.parametrize('part', ['', 'arrays', 'manifest.json'])
def test_a_checkpoint_that_is_removed_before_its_evaluation_ends_is_saved_again(
  tmp_path, capsys, number, part
):
  """As by a program that moves checkpoints to another disk."""
  run(tmp_path / 'expected')
  capsys.readouterr()
  workdir, count = tmp_path / 'run', 0

  def on_stage(stage):
    nonlocal count
    count += stage == 'evaluation'
    if stage == 'evaluation' and count == number:
      lost = max((workdir / 'checkpoints').iterdir()) / part
      lost.unlink() if lost.is_file() else shutil.rmtree(lost)

  run(workdir, on_stage)
  assert outcome(workdir) == outcome(tmp_path / 'expected')
  sentence = f'{6 if number == 3 else 4:08d} lost files during the run; it is written again'
  assert sentence in capsys.readouterr().err
  assert sentence in (workdir / 'notices.jsonl').read_text()


def test_a_finished_checkpoint_of_another_recipe_is_refused(tmp_path):
  """Such as one of another seed, copied into the wrong directory."""
  run(tmp_path / 'run', lambda stage: None)
  store = CheckpointStore(tmp_path / 'run' / 'checkpoints', keep=1)
  saved = store.latest()
  assert saved is not None
  metadata = saved.metadata
  metadata['inputs'] |= {'recipe': 'another'}
  store.replace_metadata(metadata)
  with pytest.raises(
    ConfigError, match='of the run in this directory, got one of another recipe'
  ):
    run(tmp_path / 'run', lambda stage: None)
