# SPDX-License-Identifier: Apache-2.0
"""`covrl evaluate` writes the results of one evaluation, or none."""

import contextlib
import json
import types

import numpy as np
import pytest
from etils import epath

from covrl import storage
from covrl.cli import evaluate, main
from covrl.config import Config
from covrl.data import Problem, Suite
from covrl.evaluation.result_files import write_results
from covrl.evaluation.results import Evaluation, SuiteResult
from covrl.exit_codes import Exit
from covrl.run import lock
from covrl.storage import durable


def make_evaluation(greedy):
  problems = [Problem(prompt='1', reference='1', source='s', key='k')]
  suite = Suite(name='', problems=problems)
  result = SuiteResult(
    suite=suite,
    greedy=np.full(1, greedy),
    correct=np.zeros((1, 0)),
    responses=[['r']],
    truncated=1,
  )
  return Evaluation(results=(result,), entropy=0.5)


@pytest.fixture
def evaluations(monkeypatch):
  """A list with an entry per evaluation, of a policy that is not loaded."""
  calls = []

  def policy_evaluate(**options):
    calls.append(1.0)
    return make_evaluation(1.0)

  opened_policy = types.SimpleNamespace(
    evaluate=policy_evaluate,
    iteration=3,
    config=Config(),
    task=types.SimpleNamespace(notes=('warning: 1 of 2 answers',)),
  )
  monkeypatch.setattr(
    evaluate, '_open', lambda arguments: contextlib.nullcontext(opened_policy)
  )
  return calls


def run(output):
  main(['evaluate', 'model', '--suite=amc', f'--output={output}'])


def test_results_are_written_and_no_lock_is_left(evaluations, tmp_path, capsys):
  run(tmp_path)
  files = sorted(path.name for path in (tmp_path / 'evaluation').iterdir())
  assert files == ['held_out.jsonl', 'summary.json']
  output = capsys.readouterr().out
  assert str(tmp_path / 'evaluation/summary.json') in output
  limit = Config().rollout.max_response_length
  assert f'1 of 1 responses, by the limit of {limit} tokens' in output
  summary = json.loads((tmp_path / 'evaluation/summary.json').read_text())
  assert summary['held_out']['truncated'] == 1
  assert summary['held_out']['max_response_length'] == limit
  assert evaluations == [1.0]


def test_notes_on_problems_that_training_has_not_printed_are_printed(
  evaluations, tmp_path, capsys
):
  workdir = tmp_path / 'run'
  (workdir / 'recipe').mkdir(parents=True)
  for arguments, count in (
    (['owner/model', '--suite=amc'], 1),
    (['owner/model', '--config=recipe.py:recipe'], 1),
    ([str(workdir), '--suite=amc'], 1),
    ([str(workdir)], 0),
  ):
    main(['evaluate', *arguments, f'--output={tmp_path / "results"}'])
    printed = capsys.readouterr()
    assert printed.err.count('warning: 1 of 2 answers') == count
    assert 'answers' not in printed.out


def test_one_problem_is_printed_without_an_interval(
  evaluations, tmp_path, capsys
):
  run(tmp_path)
  line = capsys.readouterr().out.splitlines()[0]
  assert line.split(maxsplit=1) == [
    'greedy',
    '1.0000 (one problem, no interval)',
  ]
  summary = json.loads((tmp_path / 'evaluation/summary.json').read_text())
  assert summary['held_out']['metrics']['greedy'] == [1.0, None, None]


def test_samples_at_temperature_0_are_noted(monkeypatch, tmp_path, capsys):
  problems = [Problem(prompt='1', reference='1', source='s', key='k')]
  for temperature in (0.0, 0.5):
    suite = Suite(
      name='', problems=problems, samples=2, temperature=temperature
    )
    result = SuiteResult(
      suite=suite,
      greedy=np.ones(1),
      correct=np.ones((1, 2)),
      responses=[['r'] * 3],
    )
    opened = types.SimpleNamespace(
      evaluate=lambda result=result, **options: Evaluation(
        results=(result,), entropy=0.5
      ),
      iteration=3,
      config=Config(),
      task=types.SimpleNamespace(notes=()),
    )
    monkeypatch.setattr(
      evaluate,
      '_open',
      lambda arguments, opened=opened: contextlib.nullcontext(opened),
    )
    run(tmp_path)
    is_noted = 'samples at temperature 0 are' in capsys.readouterr().err
    assert is_noted == (temperature == 0)


def test_two_evaluations_into_one_directory_are_refused(
  evaluations, tmp_path, capsys
):
  folder = tmp_path / 'evaluation'
  with lock.acquire(epath.Path(folder)):
    with pytest.raises(SystemExit) as ended:
      run(tmp_path)
    assert ended.value.code == Exit.REFUSED
    assert (
      f'{folder} is in use by another process; use another --output'
      in capsys.readouterr().err
    )
    assert not evaluations
    assert [path.name for path in folder.iterdir()] == [lock.FILE_NAME]
  run(tmp_path)
  assert evaluations


@pytest.mark.parametrize('name', ['recipe', 'checkpoints'])
def test_the_directory_of_another_run_is_refused(
  evaluations, tmp_path, capsys, name
):
  workdir = tmp_path / 'run'
  (workdir / name).mkdir(parents=True)
  with pytest.raises(SystemExit) as ended:
    run(workdir)
  assert ended.value.code == Exit.REFUSED
  assert (
    f'--output must be a directory without a run, or POLICY itself, got {workdir},'
    ' a run other than model' in capsys.readouterr().err
  )
  assert not evaluations
  assert not (workdir / 'evaluation').exists()
  # The run itself, by another path.
  (tmp_path / 'link').symlink_to(workdir)
  main(['evaluate', str(tmp_path / 'link'), f'--output={workdir}/.'])
  assert (workdir / 'evaluation' / 'summary.json').exists()


def test_a_directory_that_cannot_be_written_is_refused_before_evaluating(
  evaluations, tmp_path, capsys, monkeypatch
):
  with pytest.raises(SystemExit) as ended:
    run('/proc/results')
  assert ended.value.code == Exit.STORAGE
  assert '/proc/results/evaluation' in capsys.readouterr().err

  def fail(stream, data):
    raise OSError(30, 'Read-only file system')

  monkeypatch.setattr(durable, 'write_all', fail)
  with pytest.raises(SystemExit) as ended:
    run(tmp_path)
  assert ended.value.code == Exit.STORAGE
  assert not evaluations


def test_a_killed_write_leaves_no_summary_of_other_results(
  tmp_path, monkeypatch
):
  file = write_results(make_evaluation(0.0), tmp_path, {'iteration': 1})
  assert json.loads(file.read_text())['held_out']['iteration'] == 1
  write_atomically = storage.write_atomically

  def write_until_results_are_complete(path, content):
    write_atomically(path, content)
    if path.suffix == '.jsonl':
      raise KeyboardInterrupt

  monkeypatch.setattr(
    storage, 'write_atomically', write_until_results_are_complete
  )
  with pytest.raises(KeyboardInterrupt):
    write_results(make_evaluation(1.0), tmp_path, {'iteration': 2})
  assert json.loads(file.read_text()) == {}
  line = json.loads((file.parent / 'held_out.jsonl').read_text())
  assert line['greedy'] == 1
