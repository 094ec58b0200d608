# SPDX-License-Identifier: Apache-2.0
"""All processes follow the decision of process 0."""

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
