# SPDX-License-Identifier: Apache-2.0
"""Preview of a run: batch sizes, prompts, reference rewards, memory and time.

Counts are exact; memory and time are estimates of `covrl.compile.estimate`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from covrl.compile.estimate import (
  BANDWIDTH_SHARE,
  FLOPS_SHARE,
  IterationTime,
  StateMemory,
  iteration_time,
  max_input_tokens,
  network_models,
  read_compiled,
  state_memory,
)
from covrl.compile.units import bytes_text, time_text
from covrl.config import Config, ConfigError, Recipe, recorded_reads
from covrl.data import Problem, prompt_ids
from covrl.entropy import TokenMaskedState
from covrl.parallel import sharding
from covrl.parallel.topologies import AnyTopology, check_num_slices
from covrl.rewards import Scoring
from covrl.tasks.task import make_task
from covrl.tasks.verify import check_scores
from covrl.train import Task
from covrl.train.algorithm import Algorithm, warm_start_transformation
from covrl.train.setup.initial_policy import make_policy
from covrl.train.state_sharding import check_mesh
from covrl.train.warnings.recipe import recipe_warnings
from covrl.train.warnings.settings import unused_override_warnings
from covrl.types import TokenStats

# Number of prompts that are shown.
_NUM_EXAMPLES = 3


def plan(
  recipe: Recipe,
  topology: AnyTopology | None = None,
  num_slices: int = 1,
  compiled: epath.Path | None = None,
) -> Iterator[str]:
  """Yields the lines of a plan.

  Args:
    recipe: a recipe with overrides applied.
    topology: the TPU slice to run on; `None` leaves out the time estimate.
    num_slices: number of slices.
    compiled: output of `covrl compile --json` for this recipe and topology.

  Raises:
    ConfigError: if a reference answer does not earn the reward 1, a reward gives
      no score, or `compiled` describes another recipe, topology or policy.
    RuntimeError: if scoring workers cannot be started.
  """
  check_num_slices(topology, num_slices)
  config = recipe.config
  estimate = None
  if compiled is not None and topology is not None:
    estimate = read_compiled(compiled, recipe, topology, num_slices)
  with recorded_reads(config) as read_fields:
    task = make_task(recipe)
    policy = make_policy(recipe, task.tokenizer)
    algorithm = Algorithm.from_recipe(recipe)
    warm_start_tx = warm_start_transformation(recipe)
    # Built before the first line, since these may raise errors about fields.
    networks = network_models(recipe, policy)
    memory = state_memory(recipe, policy)
  if estimate is not None and estimate.parameters != policy.num_params:
    raise ConfigError(
      f'--compiled must be of a policy with {policy.num_params:,} parameters, got'
      f' {compiled}, of one with {estimate.parameters:,}'
    )
  yield f'{recipe.name}: {policy.num_params:,} parameters'
  yield from _batch_lines(config)
  if _selects(algorithm):
    yield _selection_line(config)
  for text in (
    *unused_override_warnings(recipe, read_fields, task, policy.config),
    *recipe_warnings(config, policy, algorithm, warm_start_tx, task),
  ):
    yield f'warning: {text}'
  yield from _example_lines(recipe, task)
  for name, model in zip(recipe.networks(config), networks, strict=True):
    yield f'{name}: {model.num_params:,} parameters, trained beside the policy'
  yield from _memory_lines(memory, topology, num_slices)
  if topology is None:
    yield 'give --topology (such as v5p-64) for the memory per chip and the time'
    return
  chips = topology.chips * num_slices
  try:
    mesh = sharding.abstract_mesh(dataclasses.asdict(config.mesh), chips)
    check_mesh(config, policy.config, mesh)
  except ValueError as error:
    yield f'CANNOT RUN on this topology as configured: {error}'
  if estimate is not None:
    yield (
      f'as compiled, {estimate.fullest} needs the most memory: '
      f'{bytes_text(estimate.peak)} of {bytes_text(estimate.limit)} per chip; '
      f'{"it fits" if estimate.fits else "it DOES NOT FIT"}'
    )
    seconds, basis = (
      estimate.seconds,
      'a lower bound: every compiled program at its roofline',
    )
  else:
    peak = max(memory.training, memory.sampling) / (topology.chips * num_slices)
    yield (
      f'  {"may fit" if peak <= topology.chip.hbm else "DOES NOT FIT"}: '
      f'{bytes_text(peak)} of {bytes_text(topology.chip.hbm)} per chip, if the mesh'
      ' shards everything'
    )
    seconds = iteration_time(
      config, policy, memory, topology, num_slices, networks
    )
    basis = (
      f'at {FLOPS_SHARE:.0%} of the peak FLOP/s and {BANDWIDTH_SHARE:.0%} of the '
      'bandwidth'
    )
  yield f'estimate, not measured ({basis}; full-length responses):'
  yield from _time_lines(seconds, config.train.iterations)


def _memory_lines(
  memory: StateMemory, topology: AnyTopology | None, num_slices: int
) -> Iterator[str]:
  """Yields lines on the memory of the training state."""
  chips = topology.chips * num_slices if topology else 1
  devices = f'{chips:,} × {topology.chip.name}' if topology else 'all devices'
  yield f'memory without activations, {devices}:'
  for field in dataclasses.fields(memory):
    size = getattr(memory, field.name)
    if field.name == 'experts' and not size:
      continue
    yield f'  {field.name:10} {bytes_text(size)}' + (
      f', {bytes_text(size / chips)} per chip' if topology else ''
    )


def _time_lines(seconds: IterationTime, iterations: int) -> Iterator[str]:
  """Yields lines on the time of an iteration and of the run."""
  for field in dataclasses.fields(seconds):
    yield f'  {field.name:10} {time_text(getattr(seconds, field.name))}'
  total = seconds.iteration * iterations
  yield (
    f'  an iteration {time_text(seconds.iteration)}, the run {time_text(total)} '
    'without warm start, evaluation and compilation'
  )


def _batch_lines(config: Config) -> Iterator[str]:
  """Yields lines on batch sizes and token counts."""
  rollout = config.rollout
  response = config.train.sequences_per_update * rollout.max_response_length
  yield (
    f'{config.train.iterations:,} iterations of '
    f'{rollout.prompts_per_iteration:,} prompts × '
    f'{rollout.responses_per_prompt:,} responses, '
    f'{config.updates_per_iteration:,} updates each of '
    f'{config.train.sequences_per_update:,} sequences in '
    f'{config.train.micro_batches:,}'
    f' micro-batch{"es" * (config.train.micro_batches > 1)};'
    f' {config.total_updates:,} updates'
  )
  if rollout.max_draws > 1:
    yield f'up to {rollout.max_draws:,} draws of as many prompts per iteration'
    if rollout.admission == 'slots':
      yield 'prompts of further draws are sampled one by one, as many as are needed'
  yield (
    f'an update: at most {config.train.sequences_per_update * max_input_tokens(config):,}'
    f' tokens, {response:,} of them in responses (up to '
    f'{rollout.max_prompt_length:,} + {rollout.max_response_length:,})'
  )


def _selects(algorithm: Algorithm) -> bool:
  """Returns whether the token chain selects tokens."""
  state = algorithm.token_tx.init(TokenStats.template())
  nodes = jax.tree.leaves(
    state, is_leaf=lambda node: isinstance(node, TokenMaskedState)
  )
  return any(isinstance(node, TokenMaskedState) for node in nodes)


def _selection_line(config: Config) -> str:
  """Returns a line on the number of tokens that the token chain selects."""
  rows, limit = (
    config.train.sequences_per_update,
    config.rollout.max_response_length,
  )
  max_selected = math.floor(config.entropy.fraction * rows * limit)
  return (
    'tokens that the token chain selects if it uses entropy.fraction = '
    f'{config.entropy.fraction:g}: at most {max_selected:,}'
  )


def _example_lines(recipe: Recipe, task: Task) -> Iterator[str]:
  """Yields lines on the first prompts and the rewards of their references.

  A problem without a known correct response, whose reference is a text, is scored
  with that text as the response. Its reward may be below 1: in some tasks the
  reference is not an answer.
  """
  problems = [task.train[n] for n in range(min(_NUM_EXAMPLES, len(task.train)))]
  known_responses = [task.reference_response(p) for p in problems]
  scored_texts = [
    problem.reference
    if response is None and isinstance(problem.reference, str)
    else response
    for problem, response in zip(problems, known_responses, strict=True)
  ]
  rewards = _reference_rewards(
    recipe,
    task,
    [
      (p, r)
      for p, r in zip(problems, scored_texts, strict=True)
      if r is not None
    ],
  )
  for problem, response, text in zip(
    problems, known_responses, scored_texts, strict=True
  ):
    yield f'prompt ({len(prompt_ids(problem, task.tokenizer))} tokens):'
    yield from (f'  | {line}' for line in problem.prompt.splitlines())
    if text is None:
      yield f'  reference {_shortened(problem.reference)}, without a known response'
      continue
    reward = rewards.pop(0)
    name = 'reference answer' if text == response else 'reference as a response'
    yield f'  {name} {text!r}: reward {reward:g}'
    if text == response and reward != 1:
      raise ConfigError(
        f'the reference answer to {problem.prompt!r} must earn the reward 1, got'
        f' {reward:g}'
      )


def _shortened(reference: Any) -> str:
  """Returns a reference as JSON, of at most 80 characters."""
  text = json.dumps(reference, ensure_ascii=False, default=str)
  return text if len(text) <= 80 else f'{text[:79]}…'


def _reference_rewards(
  recipe: Recipe, task: Task, answers: Sequence[tuple[Problem, str]]
) -> list[float]:
  """Returns the rewards of correct responses, relative to the maximum."""
  rewards = recipe.config.rewards
  with Scoring(
    task.rewards,
    sources=task.sources,
    workers=1,
    timeout=rewards.timeout,
    environment=rewards.environment_names,
    network=rewards.network,
    modules=recipe.modules,
  ) as scoring:
    check_scores(task, scoring)
    pending = scoring.submit(
      [response for _, response in answers],
      [problem.reference for problem, _ in answers],
      sources=[problem.source for problem, _ in answers],
      lengths=[1] * len(answers),
      shaping=False,
    )
    return pending.result().grades()
