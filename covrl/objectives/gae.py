# SPDX-License-Identifier: Apache-2.0
"""Generalised advantage estimation; each row is one sequence.

Tokens off the mask (prompts, observations, padding) are skipped: the value and
the advantage of the next token on the mask are used instead.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from covrl.array_checks import check_array, check_number, concrete_array
from covrl.objectives import returns as returns_module
from covrl.objectives.base import Number
from covrl.objectives.returns import check_tokens


def gae(
  token_rewards: Float[Array, 'S T'],
  values: Float[Array, 'S T'],
  mask: Bool[Array, 'S T'],
  *,
  discount: Number = 1.0,
  trace_decay: Number | Float[Array, ' S'] = 1.0,
  critic_trace_decay: Number | None = None,
  whiten: bool = True,
) -> tuple[Float[Array, 'S T'], Float[Array, 'S T']]:
  """Generalised advantage estimates, and the critic's target returns.

    δ_t = r_t + γ V_{t+1} − V_t,    Â_t = δ_t + γλ Â_{t+1}
    G_t = V_t + Â_t                 with λ of the critic

  where t + 1 denotes the next token on the mask.

  Args:
    token_rewards: one per token.
    values: the critic's estimate V at each token.
    mask: true for response tokens.
    discount: γ.
    trace_decay: λ, one number or one per sequence; 1 uses rewards only, 0
      bootstraps from the next value.
    critic_trace_decay: λ of the returns; `None` for `trace_decay`.
    whiten: whether advantages are whitened over the batch's tokens, see
      `covrl.objectives.whiten`; returns never are.

  Returns:
    Advantage and return of each token; both 0 off the mask.

  Raises:
    ValueError: γ or a λ is outside [0, 1], or shapes differ.

  >>> rewards, values = jnp.array([[0.0, 1.0]]), jnp.array([[0.25, 0.5]])
  >>> mask = jnp.array([[True, True]])
  >>> advantages, returns = gae(rewards, values, mask, whiten=False)
  >>> advantages.tolist(), returns.tolist()
  ([[0.75, 0.5]], [[1.0, 1.0]])

  References:
    Schulman et al., High-Dimensional Continuous Control Using Generalized
    Advantage Estimation, arXiv:1506.02438, eq. 16. Yuan et al., What's Behind
    PPO's Collapse in Long-CoT?, arXiv:2503.01491 (a λ for actor and critic
    each).
  """
  check_tokens('token_rewards', token_rewards, mask)
  check_tokens('values', values, mask)
  check_number('discount', discount, 0, 1)
  _check_decay('trace_decay', trace_decay, mask.shape[0])
  if critic_trace_decay is not None:
    check_number('critic_trace_decay', critic_trace_decay, 0, 1)
  dtype = jnp.result_type(token_rewards, values, jnp.float32)
  values = jnp.where(mask, values.astype(dtype), 0)
  rewards = jnp.where(mask, token_rewards.astype(dtype), 0)

  def estimate(decay: Number | Float[Array, ' S']) -> Float[Array, 'S T']:
    decay = jnp.asarray(decay, dtype)
    return _advantages(rewards, values, mask, discount, decay)

  advantages = estimate(trace_decay)
  critic_advantages = advantages
  if critic_trace_decay is not None:
    critic_advantages = estimate(critic_trace_decay)
  returns = jnp.where(mask, critic_advantages + values, 0)
  if whiten:
    advantages = returns_module.whiten(advantages, mask)
  return advantages, returns


def length_adaptive_decay(
  mask: Bool[Array, 'S T'], coefficient: Number
) -> Float[Array, ' S']:
  """Trace decay that grows with the length of a response (VAPO).

    λ = 1 − 1 / (α · length), at least 0

  so that rewards reach the first tokens of long responses.

  Args:
    mask: true for response tokens; their number is the length.
    coefficient: α; published is 0.05.

  Returns:
    One λ per sequence, 0 without tokens.

  Raises:
    ValueError: α is not positive.

  >>> mask = jnp.array([[True] * 4, [True] + [False] * 3])
  >>> length_adaptive_decay(mask, 0.5).tolist()
  [0.5, 0.0]

  References:
    Yue et al., VAPO, arXiv:2504.05118, section 4.2.
  """
  check_array('mask', mask, 'bool', 'S T')
  check_number('coefficient', coefficient, 0, is_open=True)
  lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
  scaled = coefficient * lengths.astype(jnp.result_type(float))
  inverse = jnp.where(lengths > 0, 1 / jnp.where(lengths > 0, scaled, 1), 1)
  return jnp.maximum(1 - inverse, 0)


def _advantages(
  rewards: Float[Array, 'S T'],
  values: Float[Array, 'S T'],
  mask: Bool[Array, 'S T'],
  discount: Number,
  decay: Float[Array, '*S'],
) -> Float[Array, 'S T']:
  """Advantages by the backward recursion, 0 off the mask."""

  def step(
    carry: tuple[Float[Array, ' S'], Float[Array, ' S']],
    token: tuple[Float[Array, ' S'], Float[Array, ' S'], Bool[Array, ' S']],
  ) -> tuple[tuple[Float[Array, ' S'], Float[Array, ' S']], Float[Array, ' S']]:
    next_value, next_advantage = carry
    reward, value, on_mask = token
    error = reward + discount * next_value - value
    advantage = error + discount * decay * next_advantage
    carry = (
      jnp.where(on_mask, value, next_value),
      jnp.where(on_mask, advantage, next_advantage),
    )
    return carry, jnp.where(on_mask, advantage, 0)

  start = jnp.zeros(mask.shape[0], rewards.dtype)
  _, advantages = jax.lax.scan(
    step, (start, start), (rewards.T, values.T, mask.T), reverse=True
  )
  return advantages.T


def _check_decay(
  name: str, decay: Number | Float[Array, ' S'], sequences: int
) -> None:
  """Refuses anything but a number in [0, 1], or an array of one per sequence."""
  if jnp.ndim(decay) == 0:
    check_number(name, decay, 0, 1)
    return
  check_array(name, decay, 'real', 'S', (sequences,))
  value = concrete_array(decay)
  if value is not None and not np.all((value >= 0) & (value <= 1)):
    raise ValueError(
      f'{name} must lie in [0, 1] for every sequence, got {value.min():g} to '
      f'{value.max():g}'
    )
