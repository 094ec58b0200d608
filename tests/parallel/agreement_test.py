# SPDX-License-Identifier: Apache-2.0
"""All processes follow the decision of process 0, and wait for one another."""

import socket
import subprocess
import sys

import pytest
from orbax.checkpoint import multihost

from covrl.parallel import distributed
from covrl.parallel.agreement import value_of_process_0


class Client:
  """The key-value store of the coordination service, in one process."""

  def __init__(self):
    self.values = {}

  def key_value_set(self, name, text):
    assert name not in self.values
    self.values[name] = text

  def blocking_key_value_get(self, name, timeout):
    assert timeout > 0
    return self.values[name]


@pytest.mark.parametrize('decision', [True, False])
def test_all_processes_follow_the_first(monkeypatch, decision):
  client = Client()
  monkeypatch.setattr(multihost, 'get_jax_distributed_client', lambda: client)
  monkeypatch.setattr(distributed, 'process_count', lambda: 2)
  for process, own in ((0, decision), (1, not decision)):
    monkeypatch.setattr(distributed, 'is_first', lambda p=process: p == 0)
    assert value_of_process_0('a', own) == decision


def test_one_process_decides_alone():
  assert value_of_process_0('a', True)
  assert not value_of_process_0('a', False)


# Two processes of which the second one refuses its input later than the first.
_REFUSE = """
import sys, time
from covrl.parallel import agreement, distributed
distributed.initialize(sys.argv[1], 2, int(sys.argv[2]), heartbeat=10)
assert distributed.process_count() == 2
time.sleep(float(sys.argv[3]))
arrived = agreement.peers_arrive('refused', timeout=int(sys.argv[4]))
print(arrived, flush=True)
distributed.exit_process(2, orderly=arrived)
"""


def refuse_late(delay, timeout):
  """Returns statuses and outputs of both processes."""
  with socket.socket() as probe:
    probe.bind(('127.0.0.1', 0))
    address = f'127.0.0.1:{probe.getsockname()[1]}'
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _REFUSE, address, i, seconds, str(timeout)],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i, seconds in (('0', '0'), ('1', str(delay)))
  ]
  outputs = [process.communicate(timeout=120) for process in processes]
  return [process.returncode for process in processes], outputs


def test_a_process_that_refuses_later_ends_with_its_own_status():
  codes, outputs = refuse_late(delay=3, timeout=60)
  assert codes == [2, 2], outputs
  assert [output for output, _ in outputs] == ['True\n'] * 2


def test_a_process_that_refuses_alone_ends_after_the_timeout():
  codes, outputs = refuse_late(delay=15, timeout=1)
  assert codes[0] == 2
  assert outputs[0][0] == 'False\n'
