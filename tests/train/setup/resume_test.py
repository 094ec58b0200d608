# SPDX-License-Identifier: Apache-2.0
"""Killed and resumed runs equal an uninterrupted one, bit for bit."""

import dataclasses
import json
import pathlib
import shutil
import signal
import subprocess
import time
import types
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from train import runs
from train.process import ENVIRONMENT, RECIPES, arguments, metric_lines

from covrl.cli import main
from covrl.config import Config
from covrl.run.checkpoint import Checkpoint, CheckpointError
from covrl.train import CheckpointStore
from covrl.train.setup.resume import RunPosition, start_or_resume

RECIPE = RECIPES / 'toy_kl_cov.py'


def start(workdir):
  """Starts a run."""
  return subprocess.Popen(
    arguments('toy_kl_cov', workdir),
    env=ENVIRONMENT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(workdir):
  """Runs to the end; returns standard error."""
  process = start(workdir)
  out, error = process.communicate(timeout=600)
  assert process.returncode == 0, error
  assert out == ''
  return error


def kill_at(workdir, phase, step):
  """Starts the run and kills it once this metric line is written."""
  process = start(workdir)
  deadline = time.monotonic() + 600
  while time.monotonic() < deadline:
    if any(
      x['phase'] == phase and x['step'] >= step for x in metric_lines(workdir)
    ):
      break
    assert process.poll() is None, 'the run ended by itself'
    time.sleep(0.005)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  return metric_lines(workdir)


def latest(workdir):
  """Newest checkpoint of a run."""
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  return saved


def arrays(workdir):
  """Newest checkpoint of a run, and its arrays by name."""
  saved = latest(workdir)
  with ocp.StandardCheckpointer() as checkpointer:
    return saved, checkpointer.restore(saved.path / 'arrays')


@pytest.fixture(scope='session')
def uninterrupted(tmp_path_factory):
  """Returns the directory of a finished, uninterrupted run."""
  return runs.finished_run(tmp_path_factory, 'toy_kl_cov')


def test_killed_and_resumed_run_equals_the_uninterrupted_one(
  uninterrupted, tmp_path
):
  workdir = tmp_path / 'killed'
  kill_at(workdir, 'warm_start', 20)
  # In the middle of an iteration of four updates, and again later.
  before = kill_at(workdir, 'train', 6)
  assert before[-1]['step'] % 4 != 0 or before[-1]['phase'] == 'train'
  kill_at(workdir, 'train', 11)
  assert 'resuming at iteration' in finish(workdir)

  saved, actual_arrays = arrays(workdir)
  expected, expected_arrays = arrays(uninterrupted)
  assert saved.position == expected.position == 16
  assert saved.metadata['position'] == expected.metadata['position']
  assert actual_arrays.keys() == expected_arrays.keys()
  for name, leaf in expected_arrays.items():
    assert (
      np.asarray(actual_arrays[name]).tobytes() == np.asarray(leaf).tobytes()
    ), name

  # The functions of the recipe are known to be the same ones at each start.
  inputs = saved.metadata['inputs']
  assert all(
    inputs[f'{name} of the recipe']
    == expected.metadata['inputs'][f'{name} of the recipe']
    != ''
    for name in ('loss', 'token_tx', 'tx', 'advantages', 'rewards')
  )
  assert not (workdir / 'notices.jsonl').exists()

  runs.assert_same_metrics(workdir, uninterrupted)
  # There are rewards and selected tokens before and after every kill.
  trained = metric_lines(workdir, 'train')
  for part in (trained[:6], trained[6:11], trained[11:]):
    assert any(line['reward'] > 0 for line in part)
    assert any(line['selected'] > 0 for line in part)
  assert saved.metadata['results'] == expected.metadata['results']
  for folder in ('rollouts', 'evaluation'):
    names = sorted(file.name for file in (uninterrupted / folder).iterdir())
    assert names
    for name in names:
      assert f'{folder}/{name}' in saved.metadata['results']
      assert (workdir / folder / name).read_bytes() == (
        uninterrupted / folder / name
      ).read_bytes()


def test_the_first_update_has_ratio_one(uninterrupted):
  for line in metric_lines(uninterrupted):
    if line['phase'] == 'train' and line['step'] % 4 == 1:
      assert line['log_ratio_abs'] == line['log_ratio_max'] == 0.0
    assert line.get('sampler_gap_max', 0.0) < 1e-5


def test_seconds_are_the_sum_of_their_parts(uninterrupted):
  iterations = set()
  for line in metric_lines(uninterrupted, 'train'):
    seconds_by_part = {
      n: value for n, value in line.items() if n.startswith('time/')
    }
    # The rollout belongs to the first update of its iteration.
    if line['iteration'] in iterations:
      seconds_by_part = {'time/update': seconds_by_part['time/update']}
    iterations.add(line['iteration'])
    assert 0 < sum(seconds_by_part.values()) <= line['seconds'] + 1e-6


def test_metrics_have_all_documented_names(uninterrupted):
  by_phase = {line['phase']: line for line in metric_lines(uninterrupted)}
  assert set(by_phase) == {'warm_start', 'train', 'eval'}
  assert {
    'step',
    'iteration',
    'reward',
    'entropy',
    'covariance',
    'selected_fraction',
    'clip_fraction',
    'log_ratio_abs',
    'sampler_gap',
    'tokens_per_second',
  } <= set(by_phase['train'])
  assert {'greedy', 'mean@4', 'pass@4'} <= set(by_phase['eval'])
  assert (uninterrupted / 'report.html').is_file()


def test_training_a_finished_run_ends_at_once(uninterrupted, capsys):
  main(['train', f'--config={RECIPE}', f'--workdir={uninterrupted}'])
  assert 'is finished' in capsys.readouterr().err


def refused(capsys, *arguments):
  """Runs a command that is refused; returns its error message."""
  with pytest.raises(SystemExit) as ended:
    main(list(arguments))
  assert ended.value.code == 2
  *progress, error = capsys.readouterr().err.splitlines()
  assert error.startswith('covrl: ')
  messages = [line for line in progress if line.startswith('covrl: ')]
  # The first line names the recipe that is executed.
  assert all('executed the recipe' in line for line in messages), messages
  return error


@pytest.mark.parametrize(
  ('override', 'message'),
  [
    ('--config.train.iteratons=3', 'did you mean train.iterations'),
    ('--config.entropy.coeficient=3', 'did you mean entropy.coefficient'),
    ('--config.train.iterations=many', 'must be an integer'),
    ('--config.train.sequences_per_update=7', 'must be a multiple of'),
    ('--config.train.micro_batches=3', 'must be a multiple of'),
    ('--config.rollout.temperature=0', 'must be above 0'),
  ],
)
def test_refuses_invalid_fields(capsys, tmp_path, override, message):
  workdir = tmp_path / 'run'
  error = refused(
    capsys, 'train', f'--config={RECIPE}', f'--workdir={workdir}', override
  )
  assert message in error
  assert not workdir.exists()


def test_refuses_the_directory_of_another_configuration(capsys, uninterrupted):
  before = sorted(file.name for file in uninterrupted.rglob('*'))
  error = refused(
    capsys,
    'train',
    f'--config={RECIPE}',
    f'--workdir={uninterrupted}',
    '--config.train.learning_rate=0.5',
  )
  assert "holds another configuration's run (train.learning_rate" in error
  assert sorted(file.name for file in uninterrupted.rglob('*')) == before


def test_refuses_damaged_checkpoints(capsys, uninterrupted, tmp_path):
  broken = tmp_path / 'broken'
  shutil.copytree(uninterrupted, broken)
  saved = latest(broken)
  data = max(
    (
      file
      for file in pathlib.Path(saved.path, 'arrays').rglob('*')
      if file.is_file()
    ),
    key=lambda file: file.stat().st_size,
  )
  content = bytearray(data.read_bytes())
  content[len(content) // 2] ^= 1
  data.write_bytes(content)
  error = refused(capsys, 'sample', str(broken), '4 7 2 :')
  assert 'is damaged' in error
  assert data.name in error
  data.unlink()
  assert 'is missing' in refused(capsys, 'sample', str(broken), '4 7 2 :')
  (saved.path / 'manifest.json').write_text('{')
  assert 'cannot be read' in refused(capsys, 'sample', str(broken), '4 7 2 :')
  shutil.rmtree(broken / 'checkpoints')
  error = refused(capsys, 'sample', str(broken), '4 7 2 :')
  assert 'must have a finished checkpoint, got none' in error


def test_a_converted_run_samples_the_same_responses(
  capsys, uninterrupted, tmp_path
):
  main(['convert', str(uninterrupted), str(tmp_path / 'model')])
  answers = []
  for directory in (uninterrupted, tmp_path / 'model'):
    capsys.readouterr()
    options = ['--count=2', '--temperature=0', '--max_length=4']
    main(['sample', str(directory), '4 7 2 :', *options])
    printed = capsys.readouterr().out.splitlines()
    answers.append([line.partition(' nats  ')[2] for line in printed])
  assert answers[0] == answers[1]
  assert len(answers[0]) == 2


def test_samples_and_evaluates_a_run(capsys, uninterrupted, tmp_path):
  main(['sample', str(uninterrupted), '4 7 2 :', '--count=3'])
  assert capsys.readouterr().out.count('nats') == 3
  # The results are written into the run.
  run = shutil.copytree(uninterrupted, tmp_path / 'run')
  main(['evaluate', str(run)])
  printed = capsys.readouterr().out
  final = [
    line for line in metric_lines(uninterrupted) if line['phase'] == 'eval'
  ][-1]
  # Same problems and noise as in the run's last evaluation.
  assert f'{final["mean@4"]:.4f}' in printed
  summary_file = run / 'evaluation' / 'summary.json'
  assert printed.splitlines()[-1].split() == ['results', str(summary_file)]
  held_out = json.loads(summary_file.read_text())['held_out']
  assert held_out['metrics']['mean@4'][0] == final['mean@4']
  results = (summary_file.parent / 'held_out.jsonl').read_text().splitlines()
  assert len(results) == held_out['problems'] == final['problems']
  assert len(json.loads(results[0])['responses']) == 5
  prompt = (str(uninterrupted), '4 7 2 :')
  main(['sample', *prompt, '--count=1', '--max_length=1'])
  assert len(capsys.readouterr().out.split(' nats ')[1].split()) <= 1
  assert refused(capsys, 'sample', *prompt, '--chat').endswith(
    f'prompts of {uninterrupted} must have a chat template with --chat, got'
    ' those of its task'
  )
  assert '--max_length must be at least 1, got 0' in refused(
    capsys, 'sample', *prompt, '--max_length=0'
  )
  assert (
    '--batch must be given with a pretrained model, --suite and no --config, got 8 '
    in (refused(capsys, 'evaluate', str(uninterrupted), '--batch=8'))
  )
  assert "--suite_directory must be given with --suite, got 'x'" in refused(
    capsys, 'evaluate', str(uninterrupted), '--suite_directory=x'
  )
  error = refused(capsys, 'sample', str(uninterrupted), '4 7 2 4 7 2 :')
  assert 'must have at most 6 tokens' in error
  assert 'must be a run directory' in refused(
    capsys, 'sample', str(uninterrupted.parent), '1'
  )


def test_a_position_of_another_version_is_refused():
  position = {**dataclasses.asdict(RunPosition()), 'entropy': 0.5}
  del position['last_entropy']
  saved = Checkpoint(
    path=epath.Path('run/7'),
    position=7,
    metadata={'position': position},
    files={},
  )
  policy = types.SimpleNamespace(config=types.SimpleNamespace(lora=None))
  components: Any = types.SimpleNamespace(policy=policy, shared_warm_start=None)
  unused: Any = None
  with pytest.raises(CheckpointError, match='written by another version of co'):
    start_or_resume(
      components,
      Config(),
      saved,
      warm_starts=unused,
      writer=unused,
      progress=unused,
      warn=unused,
      stop=unused,
      metadata={},
    )
