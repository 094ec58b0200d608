# SPDX-License-Identifier: Apache-2.0
"""covrl's loss in Tunix's GRPO learner: KL-Cov and a bonus, by registration.

To be run by hand in a separate environment, since Tunix requires other versions
of JAX and Flax:

  pip install google-tunix -e .
  python tests/examples/grpo_tunix.py

Tunix calls a loss with one micro-batch and without state. Therefore selection (a
share of the micro-batch's tokens, by covariances around the micro-batch's means), the
weights' denominator and the entropy that a controller reads are per micro-batch, and
the token chain has no state:
schedules and controllers do not advance. With `train_micro_batch_size` equal to `mini_batch_size` selection
is that of the whole update again.

The policy is a two-layer Qwen2 of random weights that learns to write the
letter a. Two updates per rollout (`num_iterations`): KL-Cov has no effect
in the first.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from tunix.models.qwen2 import model as qwen2
from tunix.rl import common, function_registry
from tunix.rl import rl_cluster as clusters
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner
from tunix.rl.rollout.base_rollout import RolloutConfig

import covrl

token_tx = optax.chain(covrl.kl_cov(0.05, 1.0), covrl.entropy_bonus(1e-3))
clipped = functools.partial(covrl.clipped_surrogate, low=0.2, high=0.28)
controlled = covrl.as_loss(clipped, token_tx)


@function_registry.register_policy_loss_fn('covrl')
def covrl_loss(model, train_example, algo_config, pad_id, eos_id, **_):
  """Returns covrl's loss of a micro-batch, and metrics."""
  tokens, mask = train_example.completion_ids, train_example.completion_mask
  _, logits = common.compute_per_token_logps(
    *nnx.split(model),
    prompt_tokens=train_example.prompt_ids,
    completion_tokens=tokens,
    pad_id=pad_id,
    eos_id=eos_id,
    stop_gradient=False,
    return_logits=True,
    temperature=algo_config.temperature,
  )
  stats = covrl.token_stats_from_logits(logits, tokens)
  mask = mask.astype(bool)
  loss, token_state = controlled(
    stats,
    token_tx.init(covrl.TokenStats.template()),
    advantages=train_example.advantages[:, None] * mask,
    old_logprobs=train_example.old_per_token_logps,
    mask=mask,
    weights=covrl.token_weights(mask),
  )
  return loss, {
    'kl': 0.0,
    'pg_clipfrac': 0.0,
    'entropy': jnp.mean(stats.entropy, where=mask),
    'selected': optax.tree.get(token_state, 'selected'),
  }


class Letters:
  """A tokenizer of a few letters."""

  letters = '_$abcdefghijklmn'

  def encode(self, text, **_):
    return [self.letters.index(letter) for letter in text]

  def decode(self, ids, **_):
    return ''.join(self.letters[int(i)] for i in ids)

  def bos_id(self):
    return 2

  def eos_id(self):
    return 1

  def pad_id(self):
    return 0


def rewards(prompts, completions, **_):
  """Returns the share of letters a in each completion."""
  del prompts
  return [text.count('a') / 16 for text in completions]


def make_learner(micro_batch):
  """Returns Tunix's learner for a micro-batch size."""
  mesh = Mesh(np.array(jax.devices()[:1]).reshape(1, 1), ('fsdp', 'tp'))
  config: Any = qwen2.ModelConfig(
    num_layers=2,
    vocab_size=len(Letters.letters),
    embed_dim=64,
    hidden_dim=128,
    num_heads=2,
    head_dim=32,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-6,
  )
  with jax.set_mesh(mesh):
    policy = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
  training = clusters.RLTrainingConfig(
    actor_optimizer=optax.adam(3e-3),
    eval_every_n_steps=1000,
    max_steps=80,
    mini_batch_size=8,
    train_micro_batch_size=micro_batch,
  )
  rollout = RolloutConfig(
    max_tokens_to_generate=16,
    max_prompt_length=4,
    kv_cache_size=32,
    temperature=1.0,
    seed=jax.random.key(0),
  )
  cluster = clusters.RLCluster(
    actor=policy,
    tokenizer=Letters(),
    cluster_config=clusters.ClusterConfig(
      role_to_mesh=dict.fromkeys(clusters.Role, mesh),
      training_config=training,
      rollout_config=rollout,
    ),
  )
  learner = GRPOLearner(
    cluster,
    GRPOConfig(
      num_generations=8, num_iterations=2, beta=0.0, policy_loss_fn='covrl'
    ),
    reward_fns=rewards,
  )
  cluster.actor_trainer.with_rl_metrics_to_log(
    {'entropy': np.mean, 'selected': np.mean}
  )
  return learner


def main():
  """Trains with whole and with divided mini-batches."""
  for micro_batch in (8, 2):
    print(f'train_micro_batch_size={micro_batch} of mini_batch_size=8')
    learner = make_learner(micro_batch)
    history = []

    def record_reward(
      prompts, completions, learner=learner, history=history, **_
    ):
      del prompts
      history.append(np.mean(rewards(None, completions)))
      # By default Tunix samples every rollout with the same noise.
      rollout = learner.rl_cluster.cluster_config.rollout_config
      rollout.seed = jax.random.key(len(history))
      return {}

    learner.metric_fns = [record_reward]
    prompts = [{'prompts': ['abcd'] * 8} for _ in range(40)]
    learner.train(prompts)
    first, last = np.mean(history[:5]), np.mean(history[-5:])
    print(f'  reward {first:.2f} → {last:.2f} in {len(history)} rollouts')


if __name__ == '__main__':
  main()
