# SPDX-License-Identifier: Apache-2.0
"""Token-level returns and advantages; each row is one sequence.

Tokens off the mask (prompts, observations, padding) are skipped and get
advantage 0.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, check_number
from covrl.objectives.advantages import centre
from covrl.objectives.base import Number
from covrl.objectives.segments import COUNT_EPSILON
from covrl.statistics.exact import count_true, exact_sum

# Added to the variance when whitening, as in published code.
VARIANCE_EPSILON = 1e-8


def reinforce_plus_plus(
  token_rewards: Float[Array, 'S T'],
  mask: Bool[Array, 'S T'],
  *,
  discount: Number = 1.0,
) -> Float[Array, 'S T']:
  """Discounted returns, whitened over the batch's tokens (REINFORCE++).

    A = (G − mean G) / std G,    G_t = r_t + γ G_{t+1}

  Args:
    token_rewards: one per token; a response's reward is at its last token.
    mask: true for response tokens.
    discount: γ.

  Returns:
    One advantage per token.

  References:
    Hu et al., REINFORCE++, arXiv:2501.03262.
  """
  return whiten(
    discounted_returns(token_rewards, mask, discount=discount), mask
  )


def reinforce_plus_plus_baseline(
  rewards: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  mask: Bool[Array, 'S T'],
) -> Float[Array, 'S T']:
  """Rewards minus their group's mean, whitened over the batch's tokens.

  Args:
    rewards: one per response.
    group_ids: responses to the same prompt share an id; a response alone in its
      group keeps its reward.
    mask: true for response tokens.

  Returns:
    One advantage per token.

  References:
    Hu et al., REINFORCE++, arXiv:2501.03262.
  """
  centred = centre(rewards, group_ids)
  shape = check_array('mask', mask, 'bool', 'S T')
  if shape[:1] != centred.shape:
    raise ValueError(
      f'mask must have a row for each of the {centred.size} rewards, got '
      f'{shape}'
    )
  return whiten(jnp.broadcast_to(centred[:, None], mask.shape), mask)


def remax(
  token_rewards: Float[Array, 'S T'],
  baselines: Float[Array, ' S'],
  mask: Bool[Array, 'S T'],
) -> Float[Array, 'S T']:
  """Reward-to-go minus the greedy response's reward (ReMax).

    A_t = Σ_{u ≥ t} r_u − baseline

  Args:
    token_rewards: one per token.
    baselines: reward of the greedy response to each sequence's prompt.
    mask: true for response tokens.

  Returns:
    One advantage per token.

  References:
    Li et al., ReMax, arXiv:2310.10505, eq. 4.
  """
  shape = check_tokens('token_rewards', token_rewards, mask)
  check_array('baselines', baselines, 'real', 'S', shape[:1])
  dtype = jnp.result_type(token_rewards, baselines, jnp.float32)
  masked = jnp.where(mask, token_rewards.astype(dtype), 0)
  reward_to_go = jnp.cumsum(masked[:, ::-1], axis=1)[:, ::-1]
  return jnp.where(mask, reward_to_go - baselines.astype(dtype)[:, None], 0)


def discounted_returns(
  token_rewards: Float[Array, 'S T'],
  mask: Bool[Array, 'S T'],
  *,
  discount: Number = 1.0,
) -> Float[Array, 'S T']:
  """Discounted returns: G_t = r_t + γ G_{t+1}.

  The sum ends at the first token off the mask, after which another turn begins.

  Args:
    token_rewards: one per token.
    mask: true for response tokens.
    discount: γ.

  >>> rewards = jnp.array([[0.0, 0.0, 1.0, 9.0]])
  >>> mask = jnp.array([[True, True, True, False]])
  >>> discounted_returns(rewards, mask, discount=0.5).tolist()
  [[0.25, 0.5, 1.0, 0.0]]
  """
  check_tokens('token_rewards', token_rewards, mask)
  check_number('discount', discount, 0, 1)
  dtype = jnp.promote_types(token_rewards.dtype, jnp.float32)
  rewards = token_rewards.astype(dtype)

  def step(
    next_return: Float[Array, ' S'],
    token: tuple[Float[Array, ' S'], Bool[Array, ' S']],
  ) -> tuple[Float[Array, ' S'], Float[Array, ' S']]:
    reward, on_mask = token
    current_return = jnp.where(on_mask, reward + discount * next_return, 0)
    return current_return, current_return

  _, returns = jax.lax.scan(
    step,
    jnp.zeros(mask.shape[0], dtype),
    (rewards.T, mask.T),
    reverse=True,
  )
  return returns.T


def whiten(
  values: Float[Array, 'S T'], mask: Bool[Array, 'S T']
) -> Float[Array, 'S T']:
  """Whitens values: mean 0 and (unbiased) variance 1 over the mask.

  Sums are exact: mean and variance have the same bits in every order of the
  rows, in every layout and on every mesh.

  Args:
    values: one per token; entries off the mask may be NaN.
    mask: true for the tokens to whiten over.

  Returns:
    The whitened values; 0 off the mask, and everywhere if all values are
    equal; NaN on the mask if a value there, or the variance, is not finite.
  """
  check_tokens('values', values, mask)
  dtype = jnp.promote_types(values.dtype, jnp.float32)
  values = jnp.where(mask, values.astype(dtype), 0)
  tokens = count_true(mask).astype(dtype)
  mean = exact_sum(values, mask) / (tokens + COUNT_EPSILON)
  centred = jnp.where(mask, values - mean, 0)
  variance = exact_sum(centred**2, mask) / (tokens + COUNT_EPSILON)
  unbiased_variance = variance * tokens / jnp.maximum(tokens - 1, 1)
  # NaN, since values divided by an infinite deviation would be 0.
  unbiased_variance = jnp.where(
    jnp.isfinite(unbiased_variance), unbiased_variance, jnp.nan
  )
  largest = jnp.max(jnp.where(mask, values, -jnp.inf), initial=-jnp.inf)
  smallest = jnp.min(jnp.where(mask, values, jnp.inf), initial=jnp.inf)
  # Equal values differ from their mean by rounding only, which must not be scaled.
  all_equal = (largest == smallest) & jnp.isfinite(largest)
  whitened = centred * jax.lax.rsqrt(unbiased_variance + VARIANCE_EPSILON)
  return jnp.where(mask & ~all_equal, whitened, 0)


def check_tokens(name: str, values: object, mask: object) -> tuple[int, ...]:
  """Refuses values that are not one number per entry of a mask `[S, T]`."""
  shape = check_array('mask', mask, 'bool', 'S T')
  return check_array(name, values, 'real', 'S T', shape)
