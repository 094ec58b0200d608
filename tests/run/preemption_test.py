# SPDX-License-Identifier: Apache-2.0
"""Stopping on signals, the watchdog and the profiler."""

import math
import os
import signal
import subprocess
import sys
import threading
import time

import jax
import pytest
from train import runs
from train.process import ENVIRONMENT, arguments, metric_lines, train
from train.runs import SMALL

from covrl.exit_codes import Exit, means_restart
from covrl.run import preemption
from covrl.run.preemption import Stopped, StopSignal
from covrl.run.profiler import Profiler
from covrl.run.watchdog import Watchdog
from covrl.train import CheckpointStore, TrainOptions

# No checkpoint but the one that a signal causes.
ONE_CHECKPOINT = {
  **SMALL,
  'checkpoint__every': 100,
  'checkpoint__every_updates': 0,
}


class KeyValueStore:
  """Replaces the key-value client of JAX's coordination service."""

  def __init__(self):
    self.values = {}

  def key_value_dir_get(self, prefix):
    return [pair for pair in self.values.items() if pair[0].startswith(prefix)]

  def key_value_set(self, key, value):
    self.values[key] = value


@pytest.fixture
def store(monkeypatch):
  """Makes this process number 0 of 2."""
  store = KeyValueStore()
  monkeypatch.setattr(preemption, '_distributed_client', lambda: store)
  monkeypatch.setattr(preemption.jax, 'process_count', lambda: 2)
  monkeypatch.setattr(preemption.jax, 'process_index', lambda: 0)
  monkeypatch.setattr(preemption, '_INTERVAL', 0.0)
  return store


def test_one_process_stops_after_the_current_update():
  stop_signal = StopSignal()
  stop_signal.set_finished_updates(3)
  stop_signal.poll()
  stop_signal.begin_update()
  stop_signal.request()
  # An update that has begun is finished.
  stop_signal.poll()
  stop_signal.set_finished_updates(4)
  with pytest.raises(Stopped):
    stop_signal.poll()
  with pytest.raises(Stopped):
    stop_signal.begin_update()


def test_all_processes_stop_after_the_largest_number_of_updates(store):
  stop_signal = StopSignal()
  stop_signal.set_finished_updates(3)
  store.values['covrl/stop/1'] = '4'
  # The other process has begun the next update, which needs this one.
  stop_signal.poll()
  assert store.values['covrl/stop/0'] == '3'
  stop_signal.begin_update()
  stop_signal.set_finished_updates(4)
  with pytest.raises(Stopped):
    stop_signal.begin_update()


def test_a_rollout_is_abandoned_once_all_processes_have_answered(store):
  stop_signal = StopSignal()
  stop_signal.set_finished_updates(3)
  stop_signal.request()
  stop_signal.poll()
  store.values['covrl/stop/1'] = '3'
  with pytest.raises(Stopped):
    stop_signal.poll()


def test_a_process_in_an_update_answers_another_that_has_not_begun_it(
  store, monkeypatch
):
  monkeypatch.setattr(preemption, '_INTERVAL', 0.01)
  stop_signal = StopSignal()
  with stop_signal.handle_signals():
    stop_signal.set_finished_updates(3)
    stop_signal.begin_update()
    # The other process was asked to stop, and waits; this one does not poll.
    store.values['covrl/stop/1'] = '3'
    for _ in range(500):
      if 'covrl/stop/0' in store.values:
        break
      time.sleep(0.01)
    assert store.values['covrl/stop/0'] == '4'
    # The other makes the update, too, and both stop after it.
    stop_signal.set_finished_updates(4)
    with pytest.raises(Stopped):
      stop_signal.begin_update()
  names = {thread.name for thread in threading.enumerate()}
  assert 'stop requests' not in names


def test_a_failed_request_does_not_end_the_answers(store, monkeypatch):
  monkeypatch.setattr(preemption, '_INTERVAL', 0.01)
  failures = [RuntimeError('not available'), RuntimeError('not available')]
  read = store.key_value_dir_get

  def read_or_fail(prefix):
    if failures:
      raise failures.pop()
    return read(prefix)

  monkeypatch.setattr(store, 'key_value_dir_get', read_or_fail)
  store.values['covrl/stop/1'] = '3'
  answers = []

  def run():
    # Signals are handled in the main thread only, other processes in any.
    with StopSignal().handle_signals():
      for _ in range(500):
        if 'covrl/stop/0' in store.values:
          break
        time.sleep(0.01)
      answers.append(store.values.get('covrl/stop/0'))

  thread = threading.Thread(target=run)
  thread.start()
  thread.join()
  assert answers == ['0']


def test_waiting_for_other_processes_times_out(store):
  stop_signal = StopSignal(timeout=0.05)
  stop_signal.request()
  with pytest.raises(RuntimeError, match='must answer'):
    stop_signal.begin_update()


@pytest.mark.parametrize('signal_number', preemption.SIGNALS)
def test_signals_are_requests_to_stop(signal_number, request):
  # Tests that run under nohup, or in the background of a shell, inherit SIG_IGN.
  inherited_handler = signal.signal(signal_number, signal.SIG_DFL)
  request.addfinalizer(lambda: signal.signal(signal_number, inherited_handler))
  handler_before = signal.getsignal(signal_number)
  stop_signal = StopSignal()
  with stop_signal.handle_signals():
    stop_signal.poll()
  assert signal.getsignal(signal_number) == handler_before
  with stop_signal.handle_signals(exits_after_run=True):
    # The same signal, sent by a terminal and by the parent process.
    for _ in range(3):
      os.kill(os.getpid(), signal_number)
    with pytest.raises(Stopped) as stopped:
      stop_signal.poll()
  # Signals while the run ends are ignored.
  for ignored_number in preemption.SIGNALS:
    os.kill(os.getpid(), ignored_number)
  preemption.restore_handlers()
  assert signal.getsignal(signal_number) == handler_before
  reported_number = (
    signal.SIGTERM if signal_number == signal.SIGHUP else signal_number
  )
  assert stopped.value.exit_status == 128 + reported_number
  stopped.value.is_resumable = True
  assert stopped.value.exit_status == Exit.RESTART


def test_a_closed_terminal_is_ignored_under_nohup():
  handler_before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    stop_signal = StopSignal()
    with stop_signal.handle_signals():
      os.kill(os.getpid(), signal.SIGHUP)
      stop_signal.poll()
  finally:
    signal.signal(signal.SIGHUP, handler_before)


@pytest.mark.parametrize(
  'work',
  [
    # Python's handlers of signals do not run before native code returns.
    'hashlib.pbkdf2_hmac("sha512", b"", b"", 2**31 - 1)',
    'time.sleep(60)',
  ],
)
def test_a_third_signal_within_five_seconds_ends_the_process_at_once(work):
  script = (
    'import hashlib, time\n'
    'from covrl.run.preemption import StopSignal\n'
    'with StopSignal().handle_signals():\n'
    '  print("ready", flush=True)\n'
    '  while True:\n'
    f'    {work}\n'
  )
  with subprocess.Popen(
    [sys.executable, '-c', script],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env=ENVIRONMENT,
  ) as started:
    assert started.stdout is not None
    started.stdout.readline()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGINT):
      time.sleep(0.3)
      assert started.poll() is None
      started.send_signal(number)
    _, error = started.communicate(timeout=60)
  assert started.returncode == Exit.INTERRUPTED
  assert error == (
    'covrl: ended at once by a third signal within 5 s; what was not saved before'
    ' is lost\n'
  )


def test_watchdog_dumps_all_stacks_and_exits():
  script = (
    'import threading, time\n'
    'from covrl.run.watchdog import Watchdog\n'
    'def sleeper():\n'
    '  time.sleep(600)\n'
    'threading.Thread(target=sleeper, daemon=True).start()\n'
    'with Watchdog(0.4) as watchdog:\n'
    '  for _ in range(8):\n'
    '    time.sleep(0.1)\n'
    '    watchdog.beat()\n'
    '  print("moved", flush=True)\n'
    '  time.sleep(600)\n'
  )
  process = subprocess.run(
    [sys.executable, '-c', script],
    capture_output=True,
    text=True,
    check=False,
    timeout=300,
    env=ENVIRONMENT,
  )
  assert process.returncode == Exit.STALLED
  assert process.stdout == 'moved\n'
  assert 'no progress for' in process.stderr
  assert 'in sleeper' in process.stderr
  assert 'in <module>' in process.stderr


def run_watched(script):
  """Runs statements under a watchdog of 0.4 s."""
  return subprocess.run(
    [
      *(sys.executable, '-c'),
      'import ctypes, os, signal, sys, time\n'
      'from covrl.run.watchdog import Watchdog\n'
      f'with Watchdog(0.4) as watchdog:\n  {script}\n',
    ],
    capture_output=True,
    text=True,
    timeout=300,
    env=ENVIRONMENT,
  )


def test_watchdog_ends_a_process_whose_native_code_hangs():
  process = run_watched('ctypes.PyDLL(None).sleep(600)')
  assert process.returncode == -signal.SIGALRM
  assert means_restart(process.returncode)
  assert 'in <module>' in process.stderr


def test_watchdog_exits_where_its_message_cannot_be_written():
  process = run_watched('os.close(2); time.sleep(600)')
  assert process.returncode == Exit.STALLED


def test_the_time_for_which_a_process_was_stopped_does_not_count():
  process = run_watched(
    'os.system(f"(sleep 0.6; kill -CONT {os.getpid()}) &");'
    ' os.kill(os.getpid(), signal.SIGSTOP); time.sleep(0.05)'
  )
  assert (process.returncode, process.stderr) == (0, '')


def test_refuses_invalid_limits_and_ranges():
  with pytest.raises(ValueError, match='--stall_after must be'):
    Watchdog(-1)
  for seconds in (-1.0, 1e10, math.nan):
    with pytest.raises(ValueError, match='stall_after must be a number of'):
      TrainOptions(stall_after=seconds)
  for steps in ('3', '5:3', 'a:b'):
    with pytest.raises(ValueError, match='--profile_steps must be'):
      Profiler(steps, 'x')


def test_a_profile_that_has_traced_nothing_is_reported(monkeypatch, tmp_path):
  monkeypatch.setattr(jax.profiler, 'start_trace', lambda directory: None)
  monkeypatch.setattr(jax.profiler, 'stop_trace', lambda: None)

  def profiler_warning(steps, updates):
    profiler = Profiler(steps, tmp_path)
    for update in updates:
      profiler.before_step(update)
      profiler.after_step(update)
    profiler.close()
    return profiler.warning()

  assert profiler_warning('', range(3)) == ''
  assert profiler_warning('1:1', range(3)) == ''
  # Beyond the run's end, and before the update at which it was resumed.
  for steps, updates in (('3:4', range(3)), ('0:1', range(2, 4))):
    assert profiler_warning(steps, updates) == (
      f'--profile_steps = {steps} has traced nothing: this process made none of'
      ' these updates'
    )


def test_sigterm_in_a_rollout_abandons_and_repeats_it(
  tmp_path, tmp_path_factory
):
  """The resumed run logs the same metrics as an uninterrupted one."""
  workdir = tmp_path / 'stopped'
  command = [
    *arguments('toy_slow', workdir, **ONE_CHECKPOINT),
    '--profile_steps=0:0',
  ]
  process = subprocess.Popen(
    command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
  )
  deadline = time.monotonic() + 900
  # After the last update of the first iteration, the next rollout begins.
  while not any(line['step'] >= 2 for line in metric_lines(workdir, 'train')):
    assert time.monotonic() < deadline
    assert process.poll() is None
    time.sleep(0.005)
  for _ in range(2):
    process.send_signal(signal.SIGTERM)
  _, error = process.communicate(timeout=600)
  assert process.returncode == Exit.RESTART
  assert 'stopped: the run is saved' in error
  saved = CheckpointStore(workdir / 'checkpoints', keep=1).latest()
  assert saved is not None
  assert saved.position == 2
  assert list((workdir / 'profile').rglob('*.xplane.pb'))
  train('toy_slow', workdir, **ONE_CHECKPOINT)
  uninterrupted = runs.finished_run(tmp_path_factory, 'toy_kl_cov', **SMALL)
  runs.assert_same_metrics(workdir, uninterrupted)
