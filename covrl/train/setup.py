# SPDX-License-Identifier: Apache-2.0
"""What a run consists of: built, and checked, before anything is written."""

from __future__ import annotations

import dataclasses

import jax
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Key

from covrl.config import ConfigError, Recipe
from covrl.evaluation.evaluator import Evaluator
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.rewards import Scoring
from covrl.rollout import SamplingEngine
from covrl.run.checkpoint import Checkpoint
from covrl.run.consistency import check_problems
from covrl.run.progress import Progress
from covrl.tasks.task import Task
from covrl.tasks.verify import check_references
from covrl.train import advice
from covrl.train.compiled import Algorithm, Programs
from covrl.train.init import policy_of
from covrl.train.rollout_batch import (
  EVALUATE_STREAM,
  INIT_STREAM,
  ROLLOUT_STREAM,
  TRAIN_STREAM,
)
from covrl.train.rollout_collector import Collector
from covrl.train.state_sharding import check_mesh, rollout_mesh
from covrl.train.warm_start import lender


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
  """The objects of a run.

  Attributes:
    mesh: where everything is.
    task: its problems.
    policy: the model.
    warm_start_tx: the parameter chain of the warm start.
    programs: the compiled functions.
    lent: another run's warm start, if this one takes it.
    keys: of all that is drawn, by stream.
    scoring: the rewards' worker processes.
    collector: makes iterations.
    evaluator: measures the policy, if there is anything to measure it by.
  """

  mesh: Mesh
  task: Task
  policy: Policy
  warm_start_tx: optax.GradientTransformation
  programs: Programs
  lent: Checkpoint | None
  keys: dict[int, Key[Array, '']]
  scoring: Scoring
  collector: Collector
  evaluator: Evaluator | None


def set_up(
  recipe: Recipe, saved: Checkpoint | None, progress: Progress
) -> Setup:
  """Builds them; whatever is wrong with a recipe is known after this.

  Args:
    recipe: a config file with overrides applied.
    saved: the checkpoint that the run goes on from.
    progress: is told what to know, and what is doubtful.

  Raises:
    ConfigError: the recipe contradicts itself, its data or its devices.
  """
  config, module = recipe.config, recipe.module
  mesh = sharding.make_mesh(dataclasses.asdict(config.mesh), jax.devices())
  task: Task = module.make_task(config)
  for note in task.notes:
    progress.note(note)
  if len(task.train) == 0:
    raise ConfigError(
      'training needs problems, the task has none; data.train names the'
      ' files of a task of text'
    )
  check_problems(task.train)
  policy = policy_of(recipe, task)
  check_mesh(config, policy.config, mesh)
  algorithm = Algorithm.of(recipe)
  programs = Programs(policy, algorithm, config, mesh)
  # A run that has a checkpoint needs no warm start, its own or another's,
  # unless that is what its adapters stand beside.
  needless = saved is not None and policy.config.lora is None
  lent = None if needless else lender(config, task)
  for warning in advice.warnings(config, algorithm):
    progress.note(f'warning: {warning}')
  engine = SamplingEngine(
    policy,
    rollout_mesh(mesh, config.rollout.tensor),
    end_ids=task.tokenizer.end_ids,
    pad_id=task.tokenizer.pad_id,
    max_response_length=config.rollout.max_response_length,
  )
  root = jax.random.key(config.seed)
  keys = {
    stream: jax.random.fold_in(root, stream)
    for stream in (ROLLOUT_STREAM, TRAIN_STREAM, EVALUATE_STREAM, INIT_STREAM)
  }
  scoring = Scoring(
    task.rewards,
    sources=task.sources,
    workers=config.rewards.workers,
    timeout=config.rewards.timeout,
  )
  for note in check_references(
    task, scoring, programs=config.data.checked_programs
  ):
    progress.note(f'warning: {note}')
  collector = Collector(
    task, engine, scoring, programs, config, keys[ROLLOUT_STREAM]
  )
  programs.check(collector.blank().batch)
  collector.check()
  evaluator = None
  if suites := task.evaluation(config.evaluate):
    evaluator = Evaluator(
      engine,
      scoring,
      task.tokenizer,
      suites,
      max_prompt_length=config.rollout.max_prompt_length,
      prompts_at_once=config.rollout.prompts_per_iteration,
      group_size=config.rollout.responses_per_prompt,
      key=keys[EVALUATE_STREAM],
      reader=task.reader,
    )
  return Setup(
    mesh=mesh,
    task=task,
    policy=policy,
    warm_start_tx=module.make_warm_start_tx(config),
    programs=programs,
    lent=lent,
    keys=keys,
    scoring=scoring,
    collector=collector,
    evaluator=evaluator,
  )
