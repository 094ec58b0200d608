# SPDX-License-Identifier: Apache-2.0
"""After the first step nothing is compiled, evaluation included."""

import pathlib

import jax

from covrl import config
from covrl.train import train
from covrl.train.writer import MetricsWriter

RECIPE = pathlib.Path(__file__).parent / 'recipes' / 'toy_kl_cov.py'


def test_no_compilation_after_the_first_step(tmp_path, monkeypatch):
  compiled = []

  def listen(event, duration_secs, **_):
    del duration_secs
    if 'backend_compile' in event:
      compiled.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  seen = []
  write = MetricsWriter.write

  def record(self, *, phase, **values):
    seen.append((phase, len(compiled)))
    write(self, phase=phase, **values)

  monkeypatch.setattr(MetricsWriter, 'write', record)
  recipe = config.load(str(RECIPE), ['--config.warm_start.steps=4'])
  train(recipe, str(tmp_path / 'run'))
  first = next(count for phase, count in seen if phase == 'train')
  assert first > 0
  assert {count for phase, count in seen[-6:]} == {first}
  assert seen[-1] == ('eval', first)
  assert len(compiled) == first
