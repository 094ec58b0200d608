# SPDX-License-Identifier: Apache-2.0
"""What a run will be, told before anything is rented or trained.

Sizes, prompts as the policy will see them, what their reference answers earn,
memory, and time. Counts are exact; for the rest see `covrl.compile.estimate`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

from etils import epath

from covrl.compile.estimate import (
  OF_BANDWIDTH,
  OF_FLOPS,
  Memory,
  Seconds,
  estimate,
  needed,
  read_compiled,
  tokens_read,
)
from covrl.config import Config, ConfigError, Recipe
from covrl.data import Problem
from covrl.parallel.topologies import Topology
from covrl.rewards import Scoring
from covrl.train import Task
from covrl.train.init import policy_of

_SHOWN = 3


def plan(
  recipe: Recipe,
  topology: Topology | None = None,
  num_slices: int = 1,
  compiled: epath.Path | None = None,
) -> Iterator[str]:
  """The lines of a plan.

  Args:
    recipe: a config file with overrides applied.
    topology: the slice it shall run on; without one there is no estimate.
    num_slices: how many of them.
    compiled: what `covrl compile --json` wrote about them, if it has run.

  Raises:
    ConfigError: a reference answer does not earn the reward 1, or `compiled`
      is of something else.
  """
  if num_slices < 1:
    raise ConfigError(f'--num-slices must be at least 1, got {num_slices}')
  config, module = recipe.config, recipe.module
  task: Task = module.make_task(config)
  policy = policy_of(recipe, task)
  yield f'{recipe.name}: {policy.num_params:,} parameters'
  yield from _sizes(config)
  yield from _examples(config, task)
  memory = needed(recipe, policy)
  yield from _state(memory, topology, num_slices)
  if topology is None:
    yield 'give --topology (such as v5p-64) for what fits and how long it takes'
    return
  if compiled is not None:
    found = read_compiled(compiled, recipe, topology, num_slices)
    yield (
      f'as compiled, {found.fullest} takes the most memory: '
      f'{_bytes(found.peak)} of {_bytes(found.limit)} a chip; '
      f'{"it fits" if found.fits else "it DOES NOT FIT"}'
    )
    seconds, how = (
      found.seconds,
      'at least: every compiled program at its roofline',
    )
  else:
    most = max(memory.training, memory.sampling) / (topology.chips * num_slices)
    yield (
      f'  {"may fit" if most <= topology.chip.hbm else "DOES NOT FIT"}: '
      f'{_bytes(most)} of {_bytes(topology.chip.hbm)} a chip, if the mesh splits'
      ' everything'
    )
    seconds = estimate(config, policy, memory, topology, num_slices)
    how = (
      f'at {OF_FLOPS:.0%} of the peak FLOP/s and {OF_BANDWIDTH:.0%} of the '
      'bandwidth'
    )
  yield f'estimate, not measured ({how}; full-length responses):'
  yield from _times(seconds, config.train.iterations)


def _state(
  memory: Memory, topology: Topology | None, num_slices: int
) -> Iterator[str]:
  """What is held all the time."""
  chips = topology.chips * num_slices if topology else 1
  where = f'{chips:,} × {topology.chip.name}' if topology else 'all devices'
  yield f'memory without activations, {where}:'
  for field in dataclasses.fields(memory):
    size = getattr(memory, field.name)
    yield f'  {field.name:10} {_bytes(size)}' + (
      f', {_bytes(size / chips)} a chip' if topology else ''
    )


def _times(seconds: Seconds, iterations: int) -> Iterator[str]:
  for field in dataclasses.fields(seconds):
    yield f'  {field.name:10} {getattr(seconds, field.name):,.3g} s'
  hours = seconds.iteration * iterations / 3600
  yield (
    f'  an iteration {seconds.iteration:,.3g} s, the run {hours:,.3g} hours '
    'without warm start, evaluation and compilation'
  )


def _sizes(config: Config) -> Iterator[str]:
  rollout = config.rollout
  response = config.train.sequences_per_update * rollout.max_response_length
  yield (
    f'{config.train.iterations:,} iterations of '
    f'{rollout.prompts_per_iteration:,} prompts × '
    f'{rollout.responses_per_prompt:,} responses, '
    f'{config.updates_per_iteration:,} updates each of '
    f'{config.train.sequences_per_update:,} sequences in '
    f'{config.train.micro_batches:,} parts; {config.total_updates:,} updates'
  )
  yield (
    f'an update: at most {config.train.sequences_per_update * tokens_read(config):,}'
    f' tokens, {response:,} of them of responses (up to '
    f'{rollout.max_prompt_length:,} + {rollout.max_response_length:,})'
  )
  yield (
    'selected of them where the token chain takes entropy.fraction = '
    f'{config.entropy.fraction:g}: at most '
    f'{math.floor(config.entropy.fraction * response):,}'
  )


def _examples(config: Config, task: Task) -> Iterator[str]:
  """Prompts as the policy will see them, and what right answers earn."""
  problems = [task.train[n] for n in range(min(_SHOWN, len(task.train)))]
  known = [(p, task.right_response(p)) for p in problems]
  marks = _marks(config, task, [(p, r) for p, r in known if r is not None])
  for problem, response in known:
    yield f'prompt ({len(task.tokenizer.encode(problem.prompt))} tokens):'
    yield from (f'  | {line}' for line in problem.prompt.splitlines())
    if response is None:
      yield '  no reference answer is known'
      continue
    mark = marks.pop(0)
    yield f'  reference answer {response!r}: reward {mark:g}'
    if mark != 1:
      raise ConfigError(
        f'reference answers must earn the reward 1, that to {problem.prompt!r} '
        f'earns {mark:g}'
      )


def _marks(
  config: Config, task: Task, answers: Sequence[tuple[Problem, str]]
) -> list[float]:
  """What right responses earn, relative to full marks."""
  with Scoring(
    task.rewards,
    sources=task.sources,
    workers=1,
    timeout=config.rewards.timeout,
  ) as scoring:
    pending = scoring.submit(
      [response for _, response in answers],
      [problem.reference for problem, _ in answers],
      sources=[problem.source for problem, _ in answers],
      lengths=[1] * len(answers),
      shaping=False,
    )
    return pending.result().marks()


def _bytes(size: float) -> str:
  """Bytes as people read them.

  >>> _bytes(1536), _bytes(3 * 2**30)
  ('1.5 KiB', '3.0 GiB')
  """
  units = ('B', 'KiB', 'MiB', 'GiB', 'TiB')
  power = min(int(math.log(max(size, 1), 1024)), len(units) - 1)
  return f'{size / 1024**power:.1f} {units[power]}'
