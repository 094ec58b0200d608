# SPDX-License-Identifier: Apache-2.0
"""Supervised warm start: training on solved problems, so that rewards vary."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree

from covrl.config import (
  Config,
)
from covrl.data import StreamState, SupervisedStream
from covrl.models import Policy
from covrl.parallel import distributed, sharding
from covrl.run.checkpoint import Checkpoint, CheckpointStore
from covrl.run.consistency import versions
from covrl.run.directory import RunDirectory
from covrl.run.metrics_writer import MetricsWriter
from covrl.run.preemption import Stopped, StopSignal
from covrl.run.progress import Progress
from covrl.statistics import token_stats
from covrl.tasks.task import Task
from covrl.train.apply import run_chain
from covrl.train.health import DivergedError
from covrl.train.state_sharding import (
  abstract_opt_state,
  replicated_like,
  shardings,
)
from covrl.types import Scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedBatch:
  """Rows of solved examples; see `covrl.data.TokenRows`.

  Attributes:
    tokens: input tokens.
    targets: the token after each input.
    loss_mask: positions whose target belongs to a solution.
    positions: positions within each example.
    segment_ids: examples that are packed into a row, from 1; 0 for padding.
  """

  tokens: Int[Array, 'B T']
  targets: Int[Array, 'B T']
  loss_mask: Bool[Array, 'B T']
  positions: Int[Array, 'B T']
  segment_ids: Int[Array, 'B T']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SupervisedState:
  """Parameters and optimiser state of the warm start.

  Attributes:
    params: the parameters.
    opt_state: state of the parameter chain.
    step: number of updates, int32; a skipped update counts.
    skipped_in_a_row: number of the latest updates that were skipped.
    skipped: number of all updates that were skipped.
  """

  params: PyTree
  opt_state: PyTree
  step: Int[Array, '']
  skipped_in_a_row: Int[Array, '']
  skipped: Int[Array, '']


def make_sft_step(
  policy: Policy, tx: optax.GradientTransformation
) -> Callable[
  [SupervisedState, SupervisedBatch], tuple[SupervisedState, dict[str, Scalar]]
]:
  """Returns an update on the mean cross-entropy of the response tokens.

  It is skipped if a gradient or an updated parameter is not finite.
  """

  def loss(params: PyTree, batch: SupervisedBatch) -> tuple[Scalar, Scalar]:
    hidden = policy.hidden(
      params,
      batch.tokens,
      positions=batch.positions,
      segment_ids=batch.segment_ids,
    )
    stats = token_stats(
      hidden,
      policy.unembedding(params),
      batch.targets,
      soft_cap=policy.config.logit_soft_cap,
      mask=batch.loss_mask,
    )
    count = jnp.maximum(jnp.sum(batch.loss_mask), 1)

    def mean(values: Array) -> Scalar:
      return jnp.sum(jnp.where(batch.loss_mask, values, 0)) / count

    return -mean(stats.logprobs), mean(stats.entropy)

  def update(
    state: SupervisedState, batch: SupervisedBatch
  ) -> tuple[SupervisedState, dict[str, Scalar]]:
    (value, entropy), gradients = jax.value_and_grad(loss, has_aux=True)(
      state.params, batch
    )
    params, opt_state, is_valid = run_chain(
      tx, gradients, state.opt_state, state.params, value
    )
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm) & is_valid
    params, opt_state = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (params, opt_state),
      (state.params, state.opt_state),
    )
    new_state = SupervisedState(
      params=params,
      opt_state=opt_state,
      step=state.step + 1,
      skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
      skipped=state.skipped + ~finite,
    )
    metrics = {'loss': value, 'entropy': entropy, 'gradient_norm': norm}
    return new_state, metrics | {'skipped_updates': new_state.skipped}

  return update


def warm_start(
  policy: Policy,
  initial_params: Callable[[], PyTree],
  task: Task,
  tx: optax.GradientTransformation,
  config: Config,
  mesh: Mesh,
  writer: MetricsWriter,
  progress: Progress,
  warn: Callable[[str], object],
  store: CheckpointStore,
  saved: Checkpoint | None,
  stop: StopSignal,
  metadata: Mapping[str, Any],
) -> PyTree:
  """Trains the policy on the task's solved examples.

  It is saved at intervals, at its end, and when a signal stops it.

  Args:
    policy: the policy, without adapters.
    initial_params: returns the initial parameters.
    task: provides the solved examples.
    tx: the parameter chain.
    config: the run's configuration.
    mesh: the mesh of the parameters.
    writer: receives the metrics.
    progress: displays the metrics.
    warn: receives a sentence if updates are skipped.
    store: the warm start's checkpoints.
    saved: the checkpoint to resume from; `None` starts.
    stop: requests to stop.
    metadata: stored with its checkpoints, beside metrics and versions: `inputs`, see
      `covrl.train.setup.inputs`, and `RunDirectory.records`.

  Returns:
    The trained parameters.

  Raises:
    ValueError: the task has no solved examples.
    DivergedError: too many updates in a row were skipped.
    Stopped: a signal has stopped the warm start; it is saved.
  """
  if task.solved is None:
    raise ValueError(
      'the task must have solved examples for a warm start, got none'
    )
  settings, logging = config.warm_start, config.logging
  stream = SupervisedStream(
    task.solved,
    seed=config.seed,
    sequences_per_draw=settings.batch_size,
    tokenizer=task.tokenizer,
    max_length=config.rollout.max_prompt_length
    + config.rollout.max_response_length
    - 1,
    width_multiple=mesh.shape['context'],
    process_index=jax.process_index(),
    process_count=jax.process_count(),
  )
  abstract_params = policy.abstract_params(mesh)
  abstract_state = SupervisedState(
    params=abstract_params,
    opt_state=abstract_opt_state(tx, abstract_params, mesh),
    step=cast(Any, replicated_like(jnp.zeros((), jnp.int32), mesh)),
    skipped_in_a_row=cast(Any, replicated_like(jnp.zeros((), jnp.int32), mesh)),
    skipped=cast(Any, replicated_like(jnp.zeros((), jnp.int32), mesh)),
  )
  state_shardings = shardings(abstract_state)
  step = jax.jit(
    make_sft_step(policy, tx),
    donate_argnums=0,
    out_shardings=(state_shardings, sharding.replicated(mesh)),
  )
  steps_done = 0
  if saved is None:
    state = _initial_state(initial_params(), tx, state_shardings)
  else:
    steps_done, state = saved.position, saved.restore(abstract_state)
    stream.set_state(saved.metadata['stream'])
    progress.note(f'resuming the warm start at step {steps_done}')

  def current_metadata() -> dict[str, Any]:
    return {'metrics': writer.sync(), 'versions': versions(), **metadata}

  def save(update: int, stream_state: StreamState) -> None:
    if store.position != update:
      store.save(update, state, current_metadata() | {'stream': stream_state})

  progress.stage('warm start', settings.steps)
  if steps_done:
    progress.update(steps_done)
  stop.set_finished_updates(steps_done)
  started, tokens, has_warned = time.monotonic(), 0, False
  with contextlib.closing(stream), jax.set_mesh(mesh):
    for update in range(steps_done + 1, settings.steps + 1):
      stream_state = stream.get_state()
      try:
        rows = next(stream)
        batch = distributed.gather_rows(
          SupervisedBatch(
            **{
              field.name: getattr(rows, field.name)
              for field in dataclasses.fields(SupervisedBatch)
            }
          )
        )
        stop.begin_update()
      except Stopped:
        if update > 1:
          save(update - 1, stream_state)
        raise
      state, metrics = step(state, sharding.shard_batch(batch, mesh))
      tokens += int(np.sum(batch.loss_mask))
      if update % logging.warm_start_every == 0 or update == settings.steps:
        values = distributed.fetch(metrics)
        values = {name: float(value) for name, value in values.items()}
        seconds = time.monotonic() - started
        values['tokens_per_second'] = tokens / seconds
        started, tokens = time.monotonic(), 0
        writer.write(step=update, iteration=0, phase='warm_start', **values)
        skipped = values.pop('skipped_updates')
        if skipped:
          values['skipped_updates'] = skipped
        progress.update(update, **values)
        _check_skipped(state, update, config.train.max_skipped_updates)
        if skipped and not has_warned:
          has_warned = True
          warn(
            f'{skipped:.0f} of the first {update} updates of the'
            ' warm start were skipped, because gradients or parameters were not'
            ' finite; further ones are counted only'
          )
      stop.set_finished_updates(update)
      every = config.checkpoint.warm_start_every
      if every and update % every == 0 and update < settings.steps:
        save(update, stream.get_state())
  store.save(settings.steps, state.params, current_metadata())
  return state.params


def is_warm_start_finished(saved: Checkpoint, config: Config) -> bool:
  """Returns whether a checkpoint of a warm start is that of its end."""
  return saved.position >= config.warm_start.steps


def _initial_state(
  params: PyTree, tx: optax.GradientTransformation, state_shardings: Any
) -> SupervisedState:
  """Returns the state before the first update, with the given shardings."""
  init_opt_state = jax.jit(tx.init, out_shardings=state_shardings.opt_state)
  zero = np.zeros((), np.int32)
  return SupervisedState(
    params=params,
    opt_state=init_opt_state(params),
    step=distributed.put_global(zero, state_shardings.step),
    skipped_in_a_row=distributed.put_global(
      zero, state_shardings.skipped_in_a_row
    ),
    skipped=distributed.put_global(zero, state_shardings.skipped),
  )


def _check_skipped(state: SupervisedState, steps: int, limit: int) -> None:
  """Raises an error if the latest updates were skipped.

  Args:
    state: the state after the update.
    steps: number of updates so far.
    limit: number of skipped updates in a row at which the run ends; it also
      ends if all updates so far, though fewer, were skipped.
  """
  skipped = int(distributed.fetch(state.skipped_in_a_row))
  if skipped >= min(limit, steps):
    raise DivergedError(
      f'the warm start has diverged: its last {skipped} updates were skipped '
      'because gradients or parameters were not finite '
      f'(train.max_skipped_updates = {limit}); lower warm_start.learning_rate'
    )


def warm_start_store(directory: RunDirectory) -> CheckpointStore:
  """Returns the store of a run's warm start.

  At its end it holds the parameters, before that the whole state.
  """
  return CheckpointStore(
    directory.path / 'warm_start', keep=1, before_write=directory.check_lock
  )
