# SPDX-License-Identifier: Apache-2.0
"""The warm start: a policy that can do a little, so that rewards have variance."""

from __future__ import annotations

import dataclasses
import time
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.config import Config, ConfigError, flatten, from_dict
from covrl.data import SupervisedStream
from covrl.models import Policy
from covrl.parallel import distributed, sharding
from covrl.run.checkpoint import Checkpoint, CheckpointStore
from covrl.run.directory import RunDirectory
from covrl.run.metrics_writer import MetricsWriter
from covrl.run.progress import Progress
from covrl.tasks.task import Task
from covrl.train.sft import (
  SupervisedBatch,
  SupervisedState,
  make_supervised_step,
)
from covrl.train.state_sharding import (
  abstract_opt_state,
  replicated_like,
  shardings,
)

# Fields that a borrowed warm start must share with the run that borrows it.
SHARED = ('seed', 'task.', 'warm_start.', 'rollout.max_')


def warm_start(
  policy: Policy,
  params: PyTree,
  task: Task,
  tx: optax.GradientTransformation,
  config: Config,
  mesh: Mesh,
  writer: MetricsWriter,
  progress: Progress,
) -> PyTree:
  """Trains the policy to imitate solved examples.

  Args:
    policy: what is trained.
    params: fresh parameters.
    task: has the examples.
    tx: the parameter chain.
    config: sizes.
    mesh: where.
    writer: for the metrics.
    progress: for the display.

  Returns:
    The trained parameters.

  Raises:
    ValueError: if the task has no solved examples.
  """
  if task.solved is None:
    raise ValueError('a warm start needs solved examples, got none')
  settings, logging = config.warm_start, config.logging
  stream = SupervisedStream(
    task.solved,
    seed=config.seed,
    sequences_per_draw=settings.batch_size,
    tokenizer=task.tokenizer,
    max_length=config.rollout.max_prompt_length
    + config.rollout.max_response_length
    - 1,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  abstract = policy.abstract_params(mesh)
  layout = shardings(
    SupervisedState(
      params=abstract,
      opt_state=abstract_opt_state(tx, abstract, mesh),
      step=cast(Any, replicated_like(jnp.zeros((), jnp.int32), mesh)),
    )
  )
  step = jax.jit(
    make_supervised_step(policy, tx),
    donate_argnums=0,
    out_shardings=(layout, sharding.replicated(mesh)),
  )
  state = SupervisedState(
    params=params,
    opt_state=jax.jit(tx.init, out_shardings=layout.opt_state)(params),
    step=distributed.place(np.zeros((), np.int32), layout.step),
  )
  progress.stage('warm start', settings.steps)
  started, tokens = time.monotonic(), 0
  with jax.set_mesh(mesh):
    for number in range(1, settings.steps + 1):
      rows = next(stream)
      batch = distributed.gather_rows(
        SupervisedBatch(
          **{
            field.name: getattr(rows, field.name)
            for field in dataclasses.fields(SupervisedBatch)
          }
        )
      )
      state, readings = step(state, sharding.shard_batch(batch, mesh))
      tokens += int(np.sum(batch.loss_mask))
      if number % logging.warm_start_every == 0 or number == settings.steps:
        values = distributed.fetch(readings)
        values = {k: float(v) for k, v in values.items()}
        seconds = time.monotonic() - started
        values['tokens_per_second'] = tokens / seconds
        started, tokens = time.monotonic(), 0
        writer.write(step=number, iteration=0, phase='warm_start', **values)
        progress.update(number, **values)
  stream.close()
  return state.params


def lender(config: Config, task: Task) -> Checkpoint | None:
  """The warm start of another run that this one takes, if it takes one.

  Raises:
    ConfigError: if that run has none, or made it otherwise, or if there is
      nothing to make one's own from.
  """
  if not config.warm_start.from_run:
    if config.warm_start.steps and task.solved is None:
      raise ConfigError(
        'warm_start.steps must be 0 for a task without solved examples, got '
        f'{config.warm_start.steps}'
      )
    return None
  other = RunDirectory(config.warm_start.from_run)
  theirs = flatten(from_dict(other.describe()['config']))
  ours = flatten(config)
  for name, value in ours.items():
    if name == 'warm_start.from_run' or not name.startswith(SHARED):
      continue
    if theirs[name] != value:
      raise ConfigError(
        f'warm_start.from_run must be a run with the same warm start, '
        f'{other.path} has {name}={theirs[name]!r} and not {value!r}'
      )
  saved = CheckpointStore(other.path / 'warm_start', keep=1).latest()
  if saved is None:
    raise ConfigError(f'{other.path} has not finished a warm start')
  return saved
