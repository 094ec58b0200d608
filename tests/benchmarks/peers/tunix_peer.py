# SPDX-License-Identifier: Apache-2.0
"""Tunix's GRPO learner with its own sampler and Qwen2, in its own loop.

Tunix is imported by name, as it is not installed where types are checked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
from collections.abc import Iterator
from typing import Any

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from . import worker

clusters: Any = importlib.import_module('tunix.rl.rl_cluster')
learners: Any = importlib.import_module('tunix.rl.grpo.grpo_learner')
qwen2: Any = importlib.import_module('tunix.models.qwen2.model')
rollouts: Any = importlib.import_module('tunix.rl.rollout.base_rollout')


class CharacterTokenizer:
  """A tokenizer whose tokens are single characters."""

  def encode(self, text: str, **_: Any) -> list[int]:
    """Ids of a text."""
    return worker.encode(text)

  def decode(self, ids: list[int], **_: Any) -> str:
    """Text of ids."""
    return worker.decode(ids)

  def bos_id(self) -> int:
    """Zero: the tokenizer has no BOS token."""
    return 0

  def eos_id(self) -> int:
    """A token that is never sampled; end tokens are set in `RolloutConfig`."""
    return -1

  def pad_id(self) -> int:
    """Id of padding."""
    return worker.PAD_ID


def rewards(
  prompts: list[str], completions: list[str], **_: Any
) -> list[float]:
  """Rewards of responses."""
  del prompts
  return [worker.reward(text) for text in completions]


def policy(shape: worker.Shape, mesh: Mesh) -> Any:
  """A Qwen2 of the shape's sizes, with random matrices."""
  heads, kv_heads, head_dim = shape.head_sizes
  config = qwen2.ModelConfig(
    num_layers=shape.layers,
    vocab_size=shape.vocabulary,
    embed_dim=shape.width,
    hidden_dim=shape.feed_forward_width,
    num_heads=heads,
    head_dim=head_dim,
    num_kv_heads=kv_heads,
    rope_theta=10_000,
    norm_eps=1e-6,
  )
  with jax.set_mesh(mesh):
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)

  def random_matrix(leaf: Any) -> Any:
    if leaf.ndim < 2:
      return leaf
    values = rng.normal(0, worker.SCALE, leaf.shape).astype(np.float32)
    return jax.device_put(values, leaf.sharding)

  nnx.update(model, jax.tree.map(random_matrix, nnx.state(model)))
  return model


class Peer:
  """A learner whose data iterator waits for the driver's commands."""

  def __init__(self, shape: worker.Shape, commands: worker.Commands) -> None:
    """Builds the learner."""
    self._shape, self._commands = shape, commands
    mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
    self._rollout = rollouts.RolloutConfig(
      max_tokens_to_generate=shape.response,
      max_prompt_length=shape.prompt,
      kv_cache_size=shape.prompt + shape.response,
      temperature=1.0,
      eos_tokens=list(shape.end_ids) or [-1],
    )
    training = clusters.RLTrainingConfig(
      actor_optimizer=optax.chain(
        optax.clip_by_global_norm(worker.MAX_GRADIENT_NORM),
        optax.adam(worker.LEARNING_RATE),
      ),
      eval_every_n_steps=1_000_000,
      max_steps=1_000_000,
      mini_batch_size=shape.prompts,
      train_micro_batch_size=shape.prompts,
    )
    self._cluster = clusters.RLCluster(
      actor=policy(shape, mesh),
      tokenizer=CharacterTokenizer(),
      cluster_config=clusters.ClusterConfig(
        role_to_mesh=dict.fromkeys(clusters.Role, mesh),
        training_config=training,
        rollout_config=self._rollout,
      ),
    )
    self._learner = learners.GRPOLearner(
      self._cluster,
      learners.GRPOConfig(
        num_generations=shape.group, beta=0.0, epsilon=worker.CLIP
      ),
      reward_fns=rewards,
    )
    self._stopwatch = worker.Stopwatch()
    self._generate = self._cluster.generate
    self._update = self._cluster.update_actor
    self._cluster.generate = self._timed_generate
    self._cluster.update_actor = self._timed_update
    self._tokens = 0

  def run(self) -> None:
    """Trains until the driver closes the pipe."""
    self._learner.train(self._batches())

  def _batches(self) -> Iterator[dict[str, np.ndarray]]:
    for prompt_set, command in enumerate(self._commands):
      self._rollout.seed = jax.random.key(prompt_set)
      prompts = worker.prompts_of(self._shape, prompt_set)
      self._stopwatch = worker.Stopwatch()
      if command == 'step':
        yield {'prompts': np.array(prompts)}
      else:
        repeated = [p for p in prompts for _ in range(self._shape.group)]
        self._cluster.generate(repeated)
      self._commands.answer(self._stopwatch.total() | {'tokens': self._tokens})

  def _timed_generate(self, *arguments: Any, **options: Any) -> Any:
    output = self._generate(*arguments, **options)
    self._tokens = sum(len(tokens) for tokens in output.tokens)
    self._stopwatch.lap('rollout')
    return output

  def _timed_update(self, *arguments: Any) -> None:
    self._update(*arguments)
    jax.block_until_ready(nnx.state(self._cluster.actor_trainer.model))
    self._stopwatch.lap('update')


def main() -> None:
  """Runs the stages that the driver requests, until it closes the pipe."""
  commands = worker.Commands()
  peer = Peer(worker.read_shape(), commands)
  commands.ready(
    tunix=importlib.metadata.version('google-tunix'), jax=jax.__version__
  )
  peer.run()


if __name__ == '__main__':
  main()
