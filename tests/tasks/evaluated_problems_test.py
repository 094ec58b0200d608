# SPDX-License-Identifier: Apache-2.0
"""Problems of a recipe's task that are evaluated and trained on, or repeat."""

import dataclasses
import json

import numpy as np
import pytest
from train import toy

from covrl.data import (
  FileSource,
  ListSource,
  MixtureSource,
  SubsetSource,
  Suite,
)
from covrl.tasks.task import make_task


def test_problems_that_are_trained_on_and_evaluated_are_noted():
  def overlapping(config):
    task = toy.make_task(config)
    training_problems = [task.train[index] for index in range(3)]
    suite = Suite(name='others', problems=task.held_out[:5])
    return dataclasses.replace(
      task, held_out=[*training_problems, *task.held_out], suites=[suite]
    )

  assert make_task(toy.recipe()).notes == ()
  (text,) = make_task(toy.recipe(task=overlapping)).notes
  assert text.startswith(
    'warning: 3 of 43 held-out problems are trained on, too'
  )


@pytest.mark.parametrize(
  'training_source',
  [
    lambda problems, file: ListSource(problems),
    lambda problems, file: SubsetSource(ListSource(problems), np.arange(9)),
    lambda problems, file: MixtureSource(
      [ListSource(problems[:2]), ListSource(problems[2:])], [1, 2]
    ),
    lambda problems, file: FileSource(file),
  ],
)
def test_trained_problems_are_found_in_sources_of_every_kind(
  tmp_path, training_source
):
  file = tmp_path / 'sums.jsonl'
  rows = [{'question': f'{n}  + 1?', 'answer': str(n + 1)} for n in range(9)]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  problems = [*FileSource(str(file))]

  def task(config):
    new = dataclasses.replace(problems[0], prompt='another')
    return dataclasses.replace(
      toy.make_task(config),
      train=training_source(problems, str(file)),
      solved=None,
      held_out=[problems[3], problems[8], new, new, new],
    )

  trained, repeated = make_task(toy.recipe(task=task)).notes
  assert trained.startswith(
    'warning: 2 of 5 held-out problems are trained on, too'
  )
  assert repeated.startswith(
    'warning: 2 of 5 held-out problems repeat another one'
  )
