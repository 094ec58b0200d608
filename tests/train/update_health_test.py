# SPDX-License-Identifier: Apache-2.0
"""Counts of updates that change nothing, and the end of a run that does not train."""

import functools
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest
from train.small_loop import Programs, run

from covrl.exit_codes import Exit, means_restart
from covrl.train.health import DivergedError, UpdateHealth


def update_metrics(**changes):
  """Metrics of a healthy update, except for `changes`."""
  return {'tokens': 5.0, 'skipped': 0.0, 'loss': 0.1, 'gradient_norm': 1.0} | (
    changes
  )


def test_skipped_updates_in_a_row_end_a_run():
  health, warnings = UpdateHealth(), []
  count = functools.partial(
    health.count, description='update 1', warn=warnings.append
  )
  for metrics in (
    update_metrics(),
    update_metrics(skipped=1.0, loss=math.nan),
    update_metrics(),
  ):
    count(metrics)
    health.check(2)
  assert health.skipped == 1
  assert health.skipped_in_a_row == 0
  assert warnings == ['update 1 is skipped: its loss is nan']
  assert health.displayed_counts() == {'skipped_updates': 1.0}
  count(update_metrics(skipped=1.0, gradient_norm=math.inf))
  health.check(2)
  count(update_metrics(skipped=1.0))
  with pytest.raises(DivergedError, match='the last 2 updates were skipped'):
    health.check(2)
  assert warnings[1:] == ["update 1 is skipped: its gradient's norm is inf"]


def test_a_run_of_skipped_updates_only_does_not_finish():
  health = UpdateHealth()
  health.count(update_metrics(skipped=1.0), 'update 1', lambda _: None)
  health.check(10)
  with pytest.raises(DivergedError, match='the last 1 updates were skipped'):
    health.check(10, is_end=True)


def test_updates_without_tokens_are_counted_and_reported():
  health, warnings = UpdateHealth(), []
  count = functools.partial(
    health.count, description='update 1', warn=warnings.append
  )
  count(update_metrics(tokens=0.0, loss=math.nan, gradient_norm=math.nan))
  assert warnings == ['update 1 has no token to train on and changes nothing']
  assert health.displayed_counts() == {'updates_without_tokens': 1.0}
  assert health.skipped == 0


def test_updates_with_a_gradient_of_zero_are_counted_and_reported_once():
  health, warnings = UpdateHealth(), []
  for number in range(3):
    health.count(
      update_metrics(gradient_norm=0.0), f'update {number}', warnings.append
    )
  health.count(update_metrics(), 'update 3', warnings.append)
  assert len(warnings) == 1
  assert warnings[0].startswith('update 0 has a gradient of 0')
  assert health.displayed_counts() == {'updates_without_gradient': 3.0}
  assert (health.made, health.skipped) == (4, 0)


def test_clamped_fractions_are_counted_and_reported_once():
  health, warnings = UpdateHealth(), []
  for number, clamped in enumerate((0.0, 1.0, 2.0)):
    health.count(
      update_metrics(clamped=clamped), f'update {number}', warnings.append
    )
  (warning,) = warnings
  assert warning.startswith('update 1 selects tokens by a fraction outside')
  assert health.displayed_counts() == {'clamped_updates': 2.0}


def test_divergence_has_an_exit_status_of_its_own():
  assert DivergedError.exit_status == Exit.DIVERGED == 46
  assert not means_restart(Exit.DIVERGED)


def test_a_run_that_has_diverged_has_a_notice(tmp_path, monkeypatch):
  update = Programs.update

  def skipped_update(*arguments):
    state, metrics = update(*arguments)
    return state, metrics | {
      'skipped': jnp.ones(()),
      'loss': jnp.asarray(np.nan),
    }

  monkeypatch.setattr(Programs, 'update', skipped_update)
  with pytest.raises(DivergedError) as caught:
    run(tmp_path, train__max_skipped_updates=2)
  assert str(caught.value).startswith(
    'training has diverged: the last 2 updates'
  )
  notices = (tmp_path / 'notices.jsonl').read_text().splitlines()
  assert json.loads(notices[-1])['text'] == str(caught.value)
