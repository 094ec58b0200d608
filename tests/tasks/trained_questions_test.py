# SPDX-License-Identifier: Apache-2.0
"""Suites with questions that a run was trained on, which training did not see."""

import dataclasses
import json

import pytest
from tasks.text_config import DATA, config

from covrl.config import Recipe
from covrl.data import FileSource
from covrl.tasks.task import make_task
from covrl.tasks.trained_questions import trained_question_notes
from covrl.train import text_task
from covrl.train.setup.suite_choice import SuiteChoice, config_and_task

QUESTIONS = (
  'What is the largest prime number that is smaller than one thousand?',
  'How many ways are there to seat five people around a table?',
  'Which of the two numbers is larger, two to the ten or ten to the three?',
)


def write(file, questions):
  """Writes a file of questions."""
  rows = [{'question': q, 'answer': '1'} for q in questions]
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(file)


def trained_on(file, **data):
  """The configuration of a run that was trained on a file."""
  settings = config(**data)
  settings.data.train = file
  return settings


@pytest.fixture
def suite(tmp_path):
  """A suite of the questions."""
  return write(tmp_path / 'suite.jsonl', QUESTIONS)


def notes(settings, suite):
  """The notes on a suite, whose directory does not matter."""
  return trained_question_notes(settings, suite, '')


@pytest.mark.parametrize('overlap_words', [0, 13])
def test_suites_with_questions_of_the_training_files_are_named(
  tmp_path, suite, overlap_words
):
  file = write(
    tmp_path / 'train.jsonl', ['What is 1 + 1?', *QUESTIONS[1:], QUESTIONS[1]]
  )
  (text,) = notes(trained_on(file, overlap_words=overlap_words), suite)
  assert text == (
    'warning: 2 of the problems that the run was trained on are also in suite (first: row 2'
    f' of {file}): results on suite do not measure accuracy on new problems'
  )


def test_every_suite_with_a_question_is_named(tmp_path, suite):
  file = write(tmp_path / 'train.jsonl', QUESTIONS)
  one = write(tmp_path / 'one.jsonl', QUESTIONS[:1])
  other = write(tmp_path / 'other.jsonl', ['How are you today, my friend?'])
  texts = notes(trained_on(file), f'{one},{other},{suite}')
  assert [text.partition(' (first')[0] for text in texts] == [
    'warning: 1 of the problems that the run was trained on are also in one',
    'warning: 3 of the problems that the run was trained on are also in suite',
  ]


def test_questions_within_others_are_found(tmp_path, suite):
  file = write(tmp_path / 'train.jsonl', [f'Think! {QUESTIONS[0]}', 'What?'])
  assert len(notes(trained_on(file), suite)) == 1


def test_problems_that_training_left_out_are_not_counted(tmp_path, suite):
  file = write(tmp_path / 'train.jsonl', [*QUESTIONS, 'What is 1 + 1?'])
  settings = trained_on(file)
  settings.evaluate.suites = suite
  assert len(text_task(settings).train) == 1
  assert not notes(settings, suite)
  settings = trained_on(file)
  assert notes(settings, suite)
  settings.rollout.max_prompt_length = 1
  assert not notes(settings, suite)
  assert not notes(trained_on(file, min_pass_rate=0.1), suite)


def test_training_files_that_cannot_be_read_are_named(tmp_path, suite):
  file = tmp_path / 'train.jsonl'
  assert notes(trained_on(str(file)), suite) == [
    f'warning: whether the run was trained on questions of {suite} was not checked:'
    f' {file} must be a file of problems, got none'
  ]
  (text,) = notes(trained_on(str(tmp_path / 'shard*.jsonl')), suite)
  assert text.endswith('which matches none')
  file.write_text('{}')
  (text,) = notes(trained_on(str(file)), suite)
  assert 'was not checked' in text
  write(file, QUESTIONS)
  settings = trained_on(str(file))
  settings.evaluate.suites = str(tmp_path / 'removed.jsonl')
  (text,) = notes(settings, suite)
  assert 'removed.jsonl' in text


def test_runs_without_training_files_have_no_notes(suite):
  assert not notes(trained_on(''), suite)


def test_the_evaluated_problems_are_those_of_the_suite(tmp_path, suite):
  file = write(tmp_path / 'train.jsonl', QUESTIONS)
  settings = trained_on(file)
  settings.evaluate.suites = 'math500'
  choice = SuiteChoice(suite)
  recipe = dataclasses.replace(_recipe(), config=settings)
  new_config, task = config_and_task(recipe, choice, is_trained=True)
  _, other = config_and_task(recipe, choice, is_trained=False)
  assert task.notes[:-1] == other.notes
  assert task.notes[-1].startswith(
    'warning: 3 of the problems that the run was'
  )
  assert task.suites == other.suites
  assert [p.key for p in task.suites[0].problems] == [
    p.key for p in FileSource(suite)
  ]
  assert new_config.evaluate.suites == suite
  assert recipe.config.evaluate.suites == 'math500'


def _recipe():
  """A recipe of problems from files, without a model."""

  def absent(*arguments):
    raise NotImplementedError

  parts = ('model', 'advantages', 'loss', 'token_tx', 'tx', 'warm_start_tx')
  return Recipe(config=config(), task=text_task, **dict.fromkeys(parts, absent))


@pytest.mark.parametrize('overlap_words', [0, 13])
def test_a_run_that_keeps_questions_of_its_suites_says_so(
  tmp_path, suite, overlap_words
):
  """Unless it leaves them out, which has a note of its own."""
  file = write(tmp_path / 'train.jsonl', [*QUESTIONS, 'What is 1 + 1?'])
  settings = trained_on(file, overlap_words=overlap_words)
  settings.evaluate.suites = suite
  task = make_task(dataclasses.replace(_recipe(), config=settings))
  texts = [text for text in task.notes if 'that the run was trained' in text]
  assert len(texts) == (not overlap_words)
  assert len(task.train) == (1 if overlap_words else 4)


def test_golden_files_have_no_questions_of_others():
  settings = trained_on(str(DATA / 'plain.jsonl'))
  assert not trained_question_notes(
    settings, 'math500,aime24', str(DATA / 'suites')
  )
