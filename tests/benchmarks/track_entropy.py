# SPDX-License-Identifier: Apache-2.0
"""Comparison of controllers: errors of following an entropy schedule.

  python tests/benchmarks/track_entropy.py [--seeds 0 1 2] [--variants VARIANT …]

Trains the small transformer of `small_control.py` for 80 iterations of four updates,
with an entropy bonus that each controller sets, and without one (GRPO). The target
falls along a line. Prints a table of root mean squared differences to it, in
percent of its fall: of the policy's entropy before every iteration, on a response
to each of all 256 prompts; and of the rollouts' entropy, which also varies with the
16 prompts of an iteration. Controllers have their default settings, or those in
`VARIANTS`. A variant with three seeds takes half a core minute, nearly all
of it compilation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from small_control import UPDATES, Curves, train

import covrl
from covrl.entropy.controllers.base import Controller

# START and END are the targets of the entropy, in nats.
ITERATIONS, START, END = 80, 2.2, 1.8

VARIANTS: Mapping[str, Callable[[optax.Schedule], Controller] | None] = {
  'grpo': None,
  'target_entropy': covrl.target_entropy,
  'proportional_integral': lambda target: (
    covrl.controllers.proportional_integral(target, minimum=0.0, maximum=1.0)
  ),
  # Settings of TRL; the published 1e-4 and 5e-3 are for large models.
  'adaptive_bonus': lambda target: covrl.adaptive_bonus(
    target, increment=5e-3, maximum=1.0
  ),
}
"""Controllers of the bonus, by name of the variant; `grpo` has no bonus."""


def main() -> None:
  """Trains all variants and prints a row of the table for each."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument(
    '--variants', nargs='+', choices=VARIANTS, default=[*VARIANTS]
  )
  parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
  options = parser.parse_args()
  print('| controller | policy, % | rollouts, % | mean difference | reward |')
  print('|---|---:|---:|---:|---:|')
  for variant in options.variants:
    print(row(variant, options.seeds), flush=True)


def row(variant: str, seeds: list[int]) -> str:
  """Trains a variant with each seed; a row of the table, in Markdown."""
  controller = VARIANTS[variant]
  schedule = optax.linear_schedule(START, END, ITERATIONS * UPDATES)
  token_tx = optax.identity()
  if controller is not None:
    token_tx = covrl.entropy_bonus(controller(schedule))
  curves: Curves = jax.device_get(
    train(token_tx, ITERATIONS, jnp.asarray(seeds))
  )
  targets = START + (END - START) * np.arange(ITERATIONS) / ITERATIONS
  policy, rollout = (
    np.sqrt(np.mean((entropy - targets) ** 2, axis=1)) / (START - END)
    for entropy in (curves.entropy, curves.rollout_entropy)
  )
  cells = (
    _cell(100 * policy, 0),
    _cell(100 * rollout, 0),
    _cell(np.mean(curves.entropy - targets, axis=1), 2),
    _cell(np.mean(curves.reward[:, -10:], axis=1), 2),
  )
  return f'| `{variant}` | {" | ".join(cells)} |'


def _cell(values: np.ndarray, digits: int) -> str:
  """Mean, and each seed's value in parentheses."""
  seed_values = ', '.join(f'{value:.{digits}f}' for value in values)
  return f'{values.mean():.{digits}f} ({seed_values})'


if __name__ == '__main__':
  main()
