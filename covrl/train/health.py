# SPDX-License-Identifier: Apache-2.0
"""Counts of updates that are skipped, change nothing, or have a clamped fraction."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

from covrl.exit_codes import Exit


class DivergedError(RuntimeError):
  """Training whose numbers are no longer finite, described in one sentence."""

  exit_status = Exit.DIVERGED


@contextlib.contextmanager
def divergence_noted(note: Callable[[str], object]) -> Iterator[None]:
  """Calls `note` with the sentence of a `DivergedError`, which is raised further."""
  try:
    yield
  except DivergedError as error:
    note(str(error))
    raise


@dataclasses.dataclass
class UpdateHealth:
  """Counts of updates that changed nothing or had a clamped fraction; saved with a run.

  Attributes:
    made: number of updates so far.
    skipped: updates that a network, the policy or another one, has skipped
      because a number was not finite.
    skipped_in_a_row: the latest of these, without others in between.
    without_tokens: updates without a token to train on.
    without_gradient: updates whose gradient is 0, as where the rewards of every
      group are equal.
    clamped: updates whose token chain selects by a fraction outside its range,
      which is clamped.
  """

  made: int = 0
  skipped: int = 0
  skipped_in_a_row: int = 0
  without_tokens: int = 0
  without_gradient: int = 0
  clamped: int = 0

  def count(
    self,
    metrics: Mapping[str, float],
    description: str,
    warn: Callable[[str], object],
  ) -> None:
    """Counts an update, and warns if it is the first of its kind in a row.

    Args:
      metrics: the update's metrics.
      description: description of the update, for the warning.
      warn: receives the warning.
    """
    self.made += 1
    if metrics['tokens'] == 0:
      self.without_tokens += 1
      warn(f'{description} has no token to train on and changes nothing')
    if metrics['gradient_norm'] == 0:
      self.without_gradient += 1
      if self.without_gradient == 1:
        warn(
          f'{description} has a gradient of 0, as where the rewards of every group are'
          ' equal; further ones are counted only'
        )
    if metrics.get('clamped', 0) > 0:
      self.clamped += 1
      if self.clamped == 1:
        warn(
          f'{description} selects tokens by a fraction outside its range, which is'
          ' clamped; further ones are counted only'
        )
    skipping_networks = _skipping_networks(metrics)
    if not skipping_networks:
      self.skipped_in_a_row = 0
      return
    self.skipped += 1
    self.skipped_in_a_row += 1
    if self.skipped_in_a_row == 1:
      for network in skipping_networks:
        by = f' by the {network}' if network else ''
        warn(f'{description} is skipped{by}: {_cause(metrics, network)}')

  def check(self, limit: int, *, is_end: bool = False) -> None:
    """Raises an error if the run does not train any more.

    Args:
      limit: number of skipped updates in a row at which the run ends.
      is_end: whether the run has made all of its updates; it then must not end
        with skipped ones only.

    Raises:
      DivergedError: too many updates in a row were skipped.
    """
    all_skipped = is_end and 0 < self.made == self.skipped
    if self.skipped_in_a_row >= limit or all_skipped:
      raise DivergedError(
        f'training has diverged: the last {self.skipped_in_a_row} updates were '
        'skipped because gradients or parameters were not finite '
        f'(train.max_skipped_updates = {limit}); check the rewards and the '
        'learning rate'
      )

  def displayed_counts(self) -> dict[str, float]:
    """Returns the counts that are displayed: those that are not 0."""
    counts = {
      'skipped_updates': self.skipped,
      'updates_without_tokens': self.without_tokens,
      'updates_without_gradient': self.without_gradient,
      'clamped_updates': self.clamped,
    }
    return {name: float(count) for name, count in counts.items() if count}


def _skipping_networks(metrics: Mapping[str, float]) -> list[str]:
  """Names of the networks that skip an update; that of the policy is empty."""
  return [
    name.rpartition('/')[0]
    for name, skipped in metrics.items()
    if name.rpartition('/')[2] == 'skipped' and skipped
  ]


def _cause(metrics: Mapping[str, float], network: str) -> str:
  """Returns which number of an update that a network skips is not finite."""
  prefix = f'{network}/' if network else ''
  for name, described in (
    ('loss', 'its loss'),
    ('gradient_norm', "its gradient's norm"),
  ):
    value = metrics[prefix + name]
    if not math.isfinite(value):
      return f'{described} is {value:g}'
  return "its parameters or its parameter chain's state would not be finite"
