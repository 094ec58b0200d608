# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that another program removes or damages right after they were saved."""

import shutil

import pytest
from train.small_loop import outcome, run


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
