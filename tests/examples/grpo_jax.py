# SPDX-License-Identifier: Apache-2.0
"""GRPO with KL-Cov in plain JAX: a custom loop with covrl's loss.

The policy answers prompt p with eight tokens and is rewarded for each that is
p + t mod 16. Two updates per rollout: on the first, where π = π_old, KL-Cov
has no effect.

  python tests/examples/grpo_jax.py
"""

import functools

import jax
import jax.numpy as jnp
import optax

import covrl

PROMPTS, GROUP, LENGTH, VOCABULARY = 16, 8, 8, 16

token_tx = optax.named_chain(
  ('kl_cov', covrl.kl_cov(0.05, optax.linear_schedule(1.0, 0.0, 200))),
  ('bonus', covrl.entropy_bonus(coefficient=1e-3)),
)
clipped = functools.partial(covrl.clipped_surrogate, low=0.2, high=0.28)
controlled = covrl.as_loss(clipped, token_tx)
tx = optax.adam(0.1)


@jax.jit
def iteration(logits, opt_state, token_state, key):
  """One rollout and its two updates; returns the state, mean reward and entropy."""
  prompts = jnp.repeat(jnp.arange(PROMPTS), GROUP)
  tokens = jax.random.categorical(key, logits[prompts])
  correct = (prompts[:, None] + jnp.arange(LENGTH)) % VOCABULARY
  rewards = jnp.mean(tokens == correct, axis=1)
  old = covrl.token_stats_from_logits(logits[prompts], tokens)
  mask = jnp.ones(tokens.shape, bool)
  context = {
    'advantages': covrl.group_relative(rewards, prompts)[:, None] * mask,
    'old_logprobs': old.logprobs,
    'mask': mask,
    'weights': covrl.token_weights(mask),
  }

  def loss(logits, token_state):
    stats = covrl.token_stats_from_logits(logits[prompts], tokens)
    return controlled(stats, token_state, **context)

  for _ in range(2):
    gradient, token_state = jax.grad(loss, has_aux=True)(logits, token_state)
    updates, opt_state = tx.update(gradient, opt_state, logits)
    logits = optax.apply_updates(logits, updates)
  return (logits, opt_state, token_state), (rewards.mean(), old.entropy.mean())


def main(iterations=100):
  """Trains; returns the mean reward and entropy of each iteration."""
  logits = jnp.zeros((PROMPTS, LENGTH, VOCABULARY))
  token_state = token_tx.init(covrl.TokenStats.template())
  carry, history = (logits, tx.init(logits), token_state), []
  for i in range(iterations):
    carry, (reward, entropy) = iteration(*carry, jax.random.key(i))
    history.append((float(reward), float(entropy)))
    if i % 10 == 9:
      chosen = int(optax.tree.get(carry[2], 'selected'))
      print(f'{i + 1:4} reward {reward:.2f}, {entropy:.2f} nats, {chosen=}')
  return history


if __name__ == '__main__':
  main()
