# SPDX-License-Identifier: Apache-2.0
"""GRPO with a target entropy, around a Flax NNX model and its `Optimizer`.

The response to prompt p is eight tokens; token t should be (p + t) mod 16, as in
`grpo_jax`. The entropy bonus is set by a controller that follows a falling
schedule; the state of the token chain is kept beside the optimiser's.

  python tests/examples/grpo_nnx.py
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import covrl

PROMPTS, GROUP, LENGTH, VOCABULARY, WIDTH = 16, 8, 8, 16, 64
TARGET_ENTROPY = optax.linear_schedule(2.0, 1.0, 400)


class Policy(nnx.Module):
  """A policy of the prompt, the previous token and the position."""

  def __init__(self, rngs):
    self.prompt = nnx.Embed(PROMPTS, WIDTH, rngs=rngs)
    self.position = nnx.Embed(LENGTH, WIDTH, rngs=rngs)
    self.previous = nnx.Embed(VOCABULARY + 1, WIDTH, rngs=rngs)
    self.mix = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
    self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)

  def __call__(self, prompts, previous, positions):
    total = self.prompt(prompts) + self.position(positions)
    return jnp.tanh(self.mix(total + self.previous(previous)))

  def sample(self, prompts, key):
    """Samples a response to each prompt, `[B, LENGTH]`."""
    previous, tokens = jnp.full_like(prompts, VOCABULARY), []
    for position in range(LENGTH):
      states = self(prompts, previous, jnp.full_like(prompts, position))
      logits, step_key = self.head(states), jax.random.fold_in(key, position)
      previous = jax.random.categorical(step_key, logits)
      tokens.append(previous)
    return jnp.stack(tokens, axis=1)

  def stats(self, prompts, tokens):
    """Returns statistics and moments of responses."""
    start = jnp.full_like(tokens[:, :1], VOCABULARY)
    previous = jnp.concatenate([start, tokens[:, :-1]], axis=1)
    positions = jnp.broadcast_to(jnp.arange(LENGTH), tokens.shape)
    states = self(prompts[:, None] + 0 * tokens, previous, positions)
    kernel = self.head.kernel[...]
    return covrl.token_stats(states, kernel, tokens, moments=True)


token_tx = covrl.entropy_bonus(
  covrl.adaptive_bonus(TARGET_ENTROPY, increment=5e-3, maximum=1.0)
)
controlled_loss = covrl.as_loss(covrl.policy_gradient, token_tx)


@nnx.jit
def iteration(policy, optimizer, token_state, step, key):
  """One rollout and its update; returns the token state, reward and entropy."""
  prompts = jnp.repeat(jnp.arange(PROMPTS), GROUP)
  tokens = policy.sample(prompts, key)
  targets = (prompts[:, None] + jnp.arange(LENGTH)) % VOCABULARY
  rewards = jnp.mean(tokens == targets, axis=1)
  mask = jnp.ones(tokens.shape, bool)
  old, moments = policy.stats(prompts, tokens)
  context = {
    'advantages': covrl.group_relative(rewards, prompts)[:, None] * mask,
    'old_logprobs': old.logprobs,
    'mask': mask,
    'weights': covrl.token_weights(mask),
    'entropy': jnp.mean(old.entropy),
    'moments': moments,
    'step': step,
  }

  def loss(policy):
    stats, _ = policy.stats(prompts, tokens)
    return controlled_loss(stats, token_state, **context)

  (_, token_state), grads = nnx.value_and_grad(loss, has_aux=True)(policy)
  optimizer.update(policy, grads)
  return token_state, rewards.mean(), context['entropy']


def main(iterations=400):
  """Trains; returns the mean reward and entropy of each iteration."""
  policy = Policy(nnx.Rngs(0))
  optimizer = nnx.Optimizer(policy, optax.adam(3e-3), wrt=nnx.Param)
  token_state, history = token_tx.init(covrl.TokenStats.template()), []
  for i in range(iterations):
    step, key = jnp.asarray(i), jax.random.key(i)
    token_state, reward, entropy = iteration(
      policy, optimizer, token_state, step, key
    )
    history.append((float(reward), float(entropy)))
    if i % 40 == 39:
      print(
        f'{i + 1:4} reward {reward:.2f}, {entropy:.2f} of {TARGET_ENTROPY(i):.2f} nats'
      )
  return history


if __name__ == '__main__':
  main()
