# SPDX-License-Identifier: Apache-2.0
"""Benchmarks covrl: GRPO with one update per iteration, as in `covrl train`."""

from __future__ import annotations

import dataclasses
import functools
import importlib.metadata
import os
from collections.abc import Sequence
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import optax
from jaxtyping import PyTree

import covrl
from covrl.config import Config, Recipe
from covrl.data import ListSource, Problem
from covrl.models import ModelConfig
from covrl.parallel.host_memory import keep_freed_memory
from covrl.rewards import Reward
from covrl.rollout import Sampling
from covrl.rollout.score import decode_responses
from covrl.tasks.task import Task
from covrl.train.setup.build import Components, build, make_engine
from covrl.types import TokenBatch, TrainState

from . import worker

# Sets of random prompts to train on, each for one iteration.
PROMPT_SETS = 64


@dataclasses.dataclass(frozen=True)
class CharacterTokenizer:
  """A tokenizer whose tokens are single characters."""

  shape: worker.Shape
  bos_id: None = None
  pad_id: int = worker.PAD_ID
  fingerprint: str = 'characters'

  @property
  def vocab_size(self) -> int:
    """Number of tokens."""
    return self.shape.vocabulary

  @property
  def end_ids(self) -> tuple[int, ...]:
    """Tokens that end a response."""
    return self.shape.end_ids

  def encode(self, text: str) -> list[int]:
    """Ids of a text."""
    return worker.encode(text)

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids."""
    return worker.decode(ids)

  def to_bytes(self) -> bytes:
    """Empty: this tokenizer has no file."""
    return b''


def score(response: str, reference: object) -> float:
  """Reward of a response, computed without delay."""
  del reference
  return worker.reward(response)


def recipe(shape: worker.Shape) -> Recipe:
  """Plain GRPO at a shape."""
  config = Config()
  config.rollout.prompts_per_iteration = shape.prompts
  config.rollout.responses_per_prompt = shape.group
  config.rollout.max_prompt_length = shape.prompt
  config.rollout.max_response_length = shape.response
  config.train.sequences_per_update = shape.sequences
  config.train.learning_rate = worker.LEARNING_RATE
  config.train.clip_low = config.train.clip_high = worker.CLIP
  config.train.max_gradient_norm = worker.MAX_GRADIENT_NORM
  config.warm_start.steps = 0
  config.logging.samples = config.logging.entropy_change_every = 0
  config.rewards.workers = 1
  config.mesh.fsdp = 1
  problems = [
    Problem(prompt=prompt, reference=None, source='random')
    for draw in range(PROMPT_SETS)
    for prompt in worker.prompts_of(shape, draw)
  ]
  return Recipe(
    config=config,
    task=lambda config: Task(
      tokenizer=CharacterTokenizer(shape),
      train=ListSource(problems),
      solved=None,
      held_out=(),
      rewards=(Reward(name='last', score='peers.covrl_peer:score'),),
    ),
    model=lambda config, vocab_size: model(shape),
    advantages=lambda config: covrl.group_relative,
    loss=lambda config: functools.partial(
      covrl.clipped_surrogate,
      low=config.train.clip_low,
      high=config.train.clip_high,
    ),
    token_tx=lambda config: optax.identity(),
    tx=parameter_chain,
    warm_start_tx=parameter_chain,
  )


def model(shape: worker.Shape) -> ModelConfig:
  """A Qwen2 of the shape's sizes."""
  heads, kv_heads, head_dim = shape.head_sizes
  return ModelConfig(
    vocab_size=shape.vocabulary,
    num_layers=shape.layers,
    model_dim=shape.width,
    num_heads=heads,
    num_kv_heads=kv_heads,
    head_dim=head_dim,
    hidden_dim=shape.feed_forward_width,
    qkv_bias=True,
    tied_embeddings=False,
  )


def parameter_chain(config: Config) -> optax.GradientTransformation:
  """Clipped gradients and Adam."""
  return optax.chain(
    optax.clip_by_global_norm(config.train.max_gradient_norm),
    optax.adam(config.train.learning_rate),
  )


def scaled(leaf: Any) -> Any:
  """Scales a matrix to the benchmark's standard deviation; keeps constants."""
  deviation = float(leaf.std())
  return leaf * (worker.SCALE / deviation) if deviation else leaf


class Peer:
  """A training run whose stages are executed one by one and timed."""

  def __init__(self, shape: worker.Shape) -> None:
    """Builds and compiles a run."""
    # Like `covrl train`, before JAX has threads.
    keep_freed_memory()
    self._shape, self._recipe = shape, recipe(shape)
    self._run: Components = build(self._recipe, None, lambda text: None)
    params = self._run.policy.init(self._run.init_key, self._run.mesh)
    params = jax.tree.map(scaled, params)
    self._state: TrainState = self._run.programs.init_state(params)
    self._run.compile(self._state)
    # The engine of the run is private to its collector: this one is the same.
    self._engine = make_engine(
      self._recipe.config,
      self._run.policy,
      self._run.task.tokenizer,
      self._run.mesh,
    )
    self._iteration = 0
    self._rows: TokenBatch | None = None

  def step(self) -> dict[str, float]:
    """Times an iteration: rollout, scoring and an update."""
    stopwatch, run, config = worker.Stopwatch(), self._run, self._recipe.config
    rollout = run.collector.collect(self._iteration, self._state)
    stopwatch.lap('rollout')
    self._rows = rollout.update_rows(0, config.train.sequences_per_update)
    tokens = self._make_update()
    stopwatch.lap('update')
    self._iteration += 1
    seconds = stopwatch.total()
    seconds['scoring'] = rollout.metrics.get('time/score', 0.0)
    seconds['rollout'] -= seconds['scoring']
    times = {k: v for k, v in rollout.metrics.items() if k[:5] == 'time/'}
    return times | seconds | {'tokens': tokens}

  def scoring(self) -> dict[str, float]:
    """Times the scoring pass over the last step's tokens."""
    rows, stopwatch = self._last_rows(), worker.Stopwatch()
    jax.block_until_ready(self._run.programs.score(self.params, rows))
    stopwatch.lap('scoring')
    return stopwatch.total()

  def update(self) -> dict[str, float]:
    """Times an update with the last step's tokens."""
    self._last_rows()
    stopwatch = worker.Stopwatch()
    tokens = self._make_update()
    stopwatch.lap('update')
    return stopwatch.total() | {'tokens': tokens}

  def rollout(self) -> dict[str, float]:
    """Times sampling responses to an iteration's prompts and decoding to text."""
    shape, stopwatch = self._shape, worker.Stopwatch()
    prompts = np.array(
      [
        worker.encode(text)
        for text in worker.prompts_of(shape, self._iteration)
      ],
      np.int32,
    )
    self._iteration += 1
    samples = self._engine.sample(
      self.params,
      prompts,
      np.ones(prompts.shape, bool),
      group_size=shape.group,
      key=jax.random.key(self._iteration),
      sequence_ids=np.arange(shape.sequences, dtype=np.int32),
      sampling=Sampling.make(),
    )
    decode_responses(self._run.task.tokenizer, samples)
    stopwatch.lap('rollout')
    return stopwatch.total() | {'tokens': float(samples.response_mask.sum())}

  def _last_rows(self) -> TokenBatch:
    """Rows of the last step; runs the first step if necessary."""
    if self._rows is None:
      self.step()
    assert self._rows is not None
    return self._rows

  def _make_update(self) -> float:
    """Updates the state with the last rows; returns their number of tokens."""
    run, rows = self._run, self._last_rows()
    self._state, metrics = run.programs.update(
      self._state, rows, True, run.train_key
    )
    return float(jax.device_get(metrics)['tokens'])

  @property
  def params(self) -> PyTree:
    """Parameters of the policy."""
    return self._run.programs.params(self._state)


def main() -> None:
  """Runs the stages that the driver requests, until it closes the pipe."""
  commands = worker.Commands()
  peer = Peer(worker.read_shape())
  commands.ready(covrl=importlib.metadata.version('covrl'), jax=jax.__version__)
  commands.serve(
    {
      'step': peer.step,
      'rollout': peer.rollout,
      'scoring': peer.scoring,
      'update': peer.update,
    }
  )


if __name__ == '__main__':
  main()
