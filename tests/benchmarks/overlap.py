# SPDX-License-Identifier: Apache-2.0
"""Seconds per iteration with a slow reward, with and without `rollout.pipeline`.

`PYTHONPATH=tests:tests/benchmarks python tests/benchmarks/overlap.py` trains the toy task
(`tests/train/toy.py`) on all cores. One worker scores the responses and sleeps for
half a second in total per iteration. Blocks of iterations without and with the pipeline alternate; printed are
the medians over blocks, in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any

import optax
from train import toy

import covrl
from covrl.config import Config, Recipe
from covrl.rewards import Reward
from covrl.tasks.task import Task
from covrl.train.setup.build import Components, build
from covrl.types import TrainState

PROMPTS, GROUP, SLEEP = 16, 4, 0.5  # SLEEP: seconds of scoring per iteration


def length_after_delay(response: str, reference: Any) -> float:
  """Scores the length after a delay."""
  del reference
  time.sleep(SLEEP / (PROMPTS * GROUP))
  return float(len(response))


def make_recipe(pipeline: int) -> Recipe:
  """The toy task with longer responses."""
  recipe = toy.recipe(
    task=_task,
    token_tx=lambda config: covrl.icepop(),
    tx=lambda config: optax.adam(config.train.learning_rate),
  )
  config = recipe.config
  config.rollout.pipeline = pipeline
  config.rollout.prompts_per_iteration = PROMPTS
  config.rollout.responses_per_prompt = GROUP
  config.rollout.max_response_length = 128
  config.train.sequences_per_update = PROMPTS * GROUP
  config.train.iterations = 10**6
  config.train.learning_rate = 1e-4
  config.logging.samples = config.logging.entropy_change_every = 0
  return recipe


def _task(config: Config) -> Task:
  reward = Reward(
    name='slow', score='overlap:length_after_delay', example=('1', [1])
  )
  return dataclasses.replace(
    toy.make_task(config), rewards=[reward], held_out=[]
  )


class TimedRun:
  """A run whose iterations are timed.

  Attributes:
    seconds: seconds per iteration of each block.
    waits: seconds per iteration that were spent waiting for scores.
  """

  def __init__(self, pipeline: int) -> None:
    self._run: Components = build(make_recipe(pipeline), None, print)
    params = self._run.policy.init(self._run.init_key, self._run.mesh)
    self._state: TrainState = self._run.programs.init_state(params)
    self._run.compile(self._state)
    self._iteration = 0
    self.seconds: list[float] = []
    self.waits: list[float] = []

  def train(self, iterations: int) -> None:
    """Trains a block of iterations and records its times."""
    began, wait = time.perf_counter(), 0.0
    for _ in range(iterations):
      rollout = self._run.collector.collect(self._iteration, self._state)
      wait += rollout.metrics['time/rewards']
      rows = rollout.update_rows(0, PROMPTS * GROUP)
      self._state, metrics = self._run.programs.update(
        self._state, rows, True, self._run.train_key
      )
      float(metrics['loss'])
      self._iteration += 1
    self.seconds.append((time.perf_counter() - began) / iterations)
    self.waits.append(wait / iterations)

  def close(self) -> None:
    """Ends the workers."""
    self._run.collector.close()
    self._run.scoring.close()


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('--blocks', type=int, default=5)
  parser.add_argument('--iterations', type=int, default=5)
  options = parser.parse_args()
  runs = [TimedRun(pipeline) for pipeline in (0, 1)]
  for run in runs:
    run.train(2)
    run.seconds.clear()
    run.waits.clear()
  for _ in range(options.blocks):
    for run in runs:
      run.train(options.iterations)
  print(
    '| rollout.pipeline | seconds per iteration | of these waiting for scores |'
  )
  print('|---:|---:|---:|')
  for pipeline, run in enumerate(runs):
    seconds, wait = map(statistics.median, (run.seconds, run.waits))
    print(f'| {pipeline} | {seconds:.2f} | {wait:.2f} |')
    run.close()


if __name__ == '__main__':
  main()
