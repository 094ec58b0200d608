# SPDX-License-Identifier: Apache-2.0
"""The combination lock with a table of logits per prompt, without a network.

Prompts share nothing, so that this is what GRPO does if nothing is learnt from
one lock for another: a lower bound of what a network can do.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from covrl.theory.categorical import softmax

from .runner import GROUP, PROMPTS
from .tasks import DEPTHS, KEY_SYMBOLS, QUIT_SHARE

LOCKS_SIMULATED = 400
STEP_SIZES = (1.0, 3.0, 10.0)
"""Step sizes of a visit: all updates on a rollout together, in logits."""


def learnt_share(
  depth: int, iterations: int, step_size: float, seed: int = 0
) -> float:
  """Share of locks whose key has a probability above ½ in the end.

  Starts with the probabilities of the demonstrations. A visit
  draws a group of responses and updates the logits by the policy gradient with
  group-relative advantages; each prompt is visited as often as in the study.

  Args:
    depth: symbols of the key.
    iterations: iterations of the study's run.
    step_size: step size of a visit.
    seed: seed of the simulation.
  """
  rng = np.random.default_rng([seed, depth])
  first_logits = np.tile(
    np.log([QUIT_SHARE, 1 - QUIT_SHARE]), (LOCKS_SIMULATED, 1)
  )
  symbol_logits = np.zeros((LOCKS_SIMULATED, depth, KEY_SYMBOLS))
  visits = round(iterations * PROMPTS / len(DEPTHS))
  for _ in range(visits):
    attempt_probability, pi = (
      softmax(first_logits)[:, 1],
      softmax(symbol_logits),
    )
    attempts = (
      rng.random((LOCKS_SIMULATED, GROUP)) < attempt_probability[:, None]
    )
    # The first action is to quit or to attempt the lock.
    # Symbol 0 is right everywhere; only choices after right ones have logits.
    symbols = np.stack(
      [_draw(rng, pi[:, position]) for position in range(depth)], axis=2
    )
    is_right_so_far = np.cumprod(symbols == 0, axis=2).astype(bool)
    is_reached = np.concatenate(
      [np.ones_like(is_right_so_far[..., :1]), is_right_so_far[..., :-1]], 2
    )
    is_reached &= attempts[..., None]
    solved = attempts & is_right_so_far[..., -1]
    rewards = np.where(attempts, solved, 0.5)
    deviation = rewards.std(axis=1, keepdims=True)
    advantages = (rewards - rewards.mean(axis=1, keepdims=True)) / (
      deviation + 1e-6
    )
    first_logits += step_size * _gradient(
      advantages,
      attempts.astype(int),
      np.ones_like(attempts),
      softmax(first_logits),
    )
    for position in range(depth):
      symbol_logits[:, position] += step_size * _gradient(
        advantages,
        symbols[..., position],
        is_reached[..., position],
        pi[:, position],
      )
  key_probability = softmax(first_logits)[:, 1] * softmax(symbol_logits)[
    :, :, 0
  ].prod(axis=1)
  return float((key_probability > 0.5).mean())


def _draw(rng: np.random.Generator, pi: Float[np.ndarray, 'n k']) -> np.ndarray:
  """A group of symbols per lock."""
  uniform = rng.random((len(pi), GROUP, 1))
  return (uniform > np.cumsum(pi, axis=1)[:, None, :-1]).sum(axis=2)


def _gradient(
  advantages: Float[np.ndarray, 'n g'],
  actions: np.ndarray,
  is_reached: np.ndarray,
  pi: Float[np.ndarray, 'n k'],
) -> Float[np.ndarray, 'n k']:
  """Mean over a group of A (e_a − π), where the state was reached."""
  logprob_gradients = np.eye(pi.shape[1])[actions] - pi[:, None, :]
  return ((advantages * is_reached)[..., None] * logprob_gradients).mean(axis=1)
