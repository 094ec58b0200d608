# SPDX-License-Identifier: Apache-2.0
"""Builds and checks the objects of a run, before any file is written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from covrl.config import Config, ConfigError, Recipe
from covrl.data import Problem, Suite
from covrl.data.packing import prompt_rows, prompt_width, token_rows
from covrl.data.pipeline import check_in_memory
from covrl.evaluation.evaluator import Evaluator
from covrl.models import Policy
from covrl.parallel import distributed, sharding
from covrl.parallel.settings import check_settings
from covrl.rewards import Scoring
from covrl.rewards.pool import Modules
from covrl.rollout import Caching, GroupEngine, SamplingEngine
from covrl.run.checkpoint import Checkpoint
from covrl.run.consistency import (
  check_inputs_of_processes,
  check_problems,
  check_programs,
)
from covrl.tasks.task import Task, make_task
from covrl.tasks.verify import check_references, check_scores
from covrl.train.algorithm import (
  recorded_algorithm,
  warm_start_transformation,
)
from covrl.train.collect.collector import RolloutCollector
from covrl.train.compiled import CompiledPrograms
from covrl.train.networks.init import check_network_tokenizers
from covrl.train.networks.network import POLICY, RANDOM
from covrl.train.rollout_batch import (
  EVALUATE_STREAM,
  INIT_STREAM,
  ROLLOUT_STREAM,
  TRAIN_STREAM,
)
from covrl.train.setup.code import code_fingerprints
from covrl.train.setup.function_fingerprints import function_fingerprints
from covrl.train.setup.initial_policy import check_lengths, make_policy
from covrl.train.setup.inputs import input_fingerprints, pretrained_fingerprint
from covrl.train.setup.shared_warm_start import shared_warm_start
from covrl.train.state_sharding import check_mesh, rollout_mesh
from covrl.train.warnings.recipe import recipe_warnings
from covrl.types import TrainState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Components:
  """The objects of a run.

  Attributes:
    mesh: the training mesh.
    task: problems, rewards and tokenizer.
    policy: the model.
    programs: the jitted training programs.
    collector: samples and scores an iteration's training data.
    scoring: the worker processes that compute rewards.
    evaluator: evaluates the policy; `None` without evaluation problems.
    warm_start_tx: the parameter chain of the warm start.
    shared_warm_start: another run's warm start that this run takes, if any.
    code_fingerprints: see `covrl.train.setup.code.code_fingerprints`.
    function_fingerprints: those of the functions of the recipe, see
      `covrl.train.setup.function_fingerprints`.
    init_key: PRNG key of random parameters.
    train_key: PRNG key of the updates.
  """

  mesh: Mesh
  task: Task
  policy: Policy
  programs: CompiledPrograms
  collector: RolloutCollector
  scoring: Scoring
  evaluator: Evaluator | None
  warm_start_tx: optax.GradientTransformation
  shared_warm_start: Checkpoint | None
  code_fingerprints: Mapping[str, str]
  function_fingerprints: Mapping[str, str]
  init_key: Key[Array, '']
  train_key: Key[Array, '']

  def compile(self, state: TrainState) -> None:
    """Compiles all programs of the run, those of evaluation included."""
    params = self.programs.params(state)
    if self.evaluator is not None:
      self.evaluator.compile(params)
    self.programs.compile(state, self.collector.padding_batch().batch)
    self.collector.compile(params)


def build(
  recipe: Recipe, saved: Checkpoint | None, note: Callable[[str], object]
) -> Components:
  """Builds the objects of a run and checks them against one another.

  Args:
    recipe: the recipe to run.
    saved: the checkpoint to resume from, if any.
    note: receives remarks on the problems, and warnings.

  Raises:
    ConfigError: the recipe contradicts itself, its data or its devices.
  """
  config = recipe.config

  def warn(text: str) -> None:
    note(f'warning: {text}')

  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh), jax.devices())
  task = make_task(recipe)
  # Functions of the recipe may have changed settings of JAX.
  check_settings(trains=True)
  task.check_evaluation(config.evaluate)
  for text in task.notes:
    note(text)
  if len(task.train) == 0:
    raise ConfigError(
      'the task must have training problems, got none; data.train names the'
      ' files of a task of text'
    )
  check_problems('problems to train on', task.train)
  if task.solved is not None:
    check_problems('solved examples', task.solved)
  policy = make_policy(recipe, task.tokenizer)
  check_mesh(config, policy.config, mesh)
  algorithm, changeable = recorded_algorithm(recipe)
  check_settings(trains=True)
  check_network_tokenizers(algorithm.networks, task.tokenizer, warn)
  for network in algorithm.networks.values():
    if network.initial not in (POLICY, RANDOM):
      check_lengths(config, network.initial)
  programs = CompiledPrograms(policy, algorithm, config, mesh)
  # A resumed run needs a warm start only as the base of its adapters.
  warm_start = None
  if saved is None or policy.config.lora is not None:
    warm_start = shared_warm_start(config, task, policy)
  fingerprints_of_code = code_fingerprints(recipe, task)
  if distributed.process_count() > 1:
    check_inputs_of_processes(
      input_fingerprints(
        config, task, policy, warm_start, programs.networks.models
      )
      | pretrained_fingerprint(config)
      | fingerprints_of_code
    )
  warm_start_tx = warm_start_transformation(recipe)
  if changeable:
    note(
      'warning: loss, chains, advantages or networks read'
      f' {", ".join(changeable)}, which may change when the run is resumed: it may'
      ' then differ from an uninterrupted one; schedules are to run over'
      ' train.schedule_iterations (config.schedule_updates)'
    )
  for text in recipe_warnings(config, policy, algorithm, warm_start_tx, task):
    warn(text)
  engine = make_engine(
    config,
    policy,
    task.tokenizer,
    mesh,
    record_experts=config.train.routing_replay,
  )
  scoring = make_scoring(config, task, warn, recipe.modules)
  group_engine = None
  if config.rollout.admission == 'slots':
    group_engine = make_group_engine(config, policy, task.tokenizer, mesh)
  collector = RolloutCollector(
    task,
    engine,
    scoring,
    programs,
    config,
    stream_key(config, ROLLOUT_STREAM),
    group_engine,
  )
  # An invalid algorithm or prompt fails here rather than in the first update.
  update = programs.trace_update(collector.padding_batch().batch)
  check_programs({'update': update})
  fingerprints_of_functions = function_fingerprints(
    algorithm,
    # That of a finished warm start has no effect any more.
    warm_start_tx if saved is None and config.warm_start.steps else None,
    task.rewards,
    collector.padding_batch().batch,
    policy.split(policy.abstract_params())[0],
    fingerprints_of_code,
  )
  check_inputs_of_processes(fingerprints_of_functions)
  collector.check_prompts()
  check_problems_in_memory(task, config)
  evaluator = None
  if suites := task.evaluation_suites(config.evaluate):
    evaluator = make_evaluator(config, task, engine, scoring, suites)
  # The workers have started in the meantime.
  scores = check_scores(task, scoring)
  # Compared as functions are, whatever libraries and code they had.
  fingerprints_of_functions |= {
    f'scores of {name}': f'scores {digest}' for name, digest in scores.items()
  }
  return Components(
    mesh=mesh,
    task=task,
    policy=policy,
    programs=programs,
    collector=collector,
    scoring=scoring,
    evaluator=evaluator,
    warm_start_tx=warm_start_tx,
    shared_warm_start=warm_start,
    code_fingerprints=fingerprints_of_code,
    function_fingerprints=fingerprints_of_functions,
    init_key=stream_key(config, INIT_STREAM),
    train_key=stream_key(config, TRAIN_STREAM),
  )


def check_problems_in_memory(task: Task, config: Config) -> None:
  """Checks all problems in memory before training.

  Raises:
    ValueError: a prompt or a solved example is too long or has no tokens.
  """
  tokenizer, rollout = task.tokenizer, config.rollout
  longest = rollout.max_prompt_length + rollout.max_response_length - 1

  def prompts(problems: Sequence[Problem], indices: Sequence[int]) -> object:
    return prompt_rows(
      problems, tokenizer, rollout.max_prompt_length, indices=indices
    )

  def examples(problems: Sequence[Problem], indices: Sequence[int]) -> object:
    del indices
    return token_rows(problems, tokenizer, longest)

  check_in_memory(task.train, prompts)
  if task.solved is not None and config.warm_start.steps:
    check_in_memory(task.solved, examples)


def stream_key(config: Config, stream: int) -> Key[Array, '']:
  """Returns the PRNG key of one of the run's random streams."""
  return jax.random.fold_in(jax.random.key(config.seed), stream)


class SpecialTokens(Protocol):
  """Tokens that end responses, and the one that fills rows."""

  @property
  def end_ids(self) -> Sequence[int]:
    """Tokens that end a response."""
    ...

  @property
  def pad_id(self) -> int:
    """Token that fills rows."""
    ...


def make_engine(
  config: Config,
  policy: Policy,
  tokenizer: SpecialTokens,
  mesh: Mesh,
  *,
  record_experts: bool = False,
) -> SamplingEngine:
  """Returns the sampler of a policy whose parameters are on `mesh`."""
  return SamplingEngine(
    policy,
    rollout_mesh(mesh, config.rollout.tensor),
    end_ids=tokenizer.end_ids,
    pad_id=tokenizer.pad_id,
    max_response_length=config.rollout.max_response_length,
    slots=config.rollout.slots,
    segment=config.rollout.segment,
    caching=Caching.of(config.rollout),
    record_experts=record_experts,
  )


def make_group_engine(
  config: Config, policy: Policy, tokenizer: SpecialTokens, mesh: Mesh
) -> GroupEngine:
  """Returns the sampler to which prompts are added as slots are free."""
  rollout = config.rollout
  return GroupEngine(
    policy,
    rollout_mesh(mesh, rollout.tensor),
    end_ids=tokenizer.end_ids,
    pad_id=tokenizer.pad_id,
    prompts=rollout.prompts_per_iteration,
    prompt_width=prompt_width(rollout.max_prompt_length),
    max_response_length=rollout.max_response_length,
    group_size=rollout.responses_per_prompt,
    slots=rollout.slots,
    segment=rollout.segment,
    caching=Caching.of(rollout),
  )


def make_scoring(
  config: Config,
  task: Task,
  warn: Callable[[str], object],
  modules: Modules | None = None,
) -> Scoring:
  """Starts a task's scoring workers and grades its reference answers.

  Of programming problems only `data.checked_programs` are graded.

  Args:
    config: the run's configuration.
    task: provides rewards and reference answers.
    warn: receives a sentence for each source with wrong reference answers, and on
      how programs are isolated.
    modules: see `Recipe.modules`.
  """
  scoring = Scoring(
    task.rewards,
    sources=task.sources,
    workers=config.rewards.workers,
    timeout=config.rewards.timeout,
    environment=config.rewards.environment_names,
    network=config.rewards.network,
    modules=modules,
  )
  for text in scoring.notes:
    warn(text)
  try:
    for text in check_references(
      task, scoring, programs=config.data.checked_programs
    ):
      warn(text)
  except BaseException:
    scoring.close()
    raise
  return scoring


def make_evaluator(
  config: Config,
  task: Task,
  engine: SamplingEngine,
  scoring: Scoring,
  suites: Sequence[Suite],
) -> Evaluator:
  """Returns an evaluator of suites with a run's PRNG key and batch sizes."""
  return Evaluator(
    engine,
    scoring,
    task.tokenizer,
    suites,
    max_prompt_length=config.rollout.max_prompt_length,
    prompts_per_batch=config.rollout.prompts_per_iteration,
    group_size=config.rollout.responses_per_prompt,
    key=stream_key(config, EVALUATE_STREAM),
    answer_extractor=task.answer_extractor,
    max_failures=config.rewards.max_failures,
  )
