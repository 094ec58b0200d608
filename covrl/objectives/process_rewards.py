# SPDX-License-Identifier: Apache-2.0
"""Advantages from process rewards of tokens and outcomes of responses (PRIME)."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, check_number
from covrl.objectives import returns
from covrl.objectives.advantages import leave_one_out, same_group
from covrl.objectives.base import Number
from covrl.objectives.gae import gae
from covrl.objectives.returns import check_tokens
from covrl.types import Scalar

# Formula that combines process rewards and outcomes: the paper's, or that of its
# public code.
PrimeForm = Literal['paper', 'code']

# Added to the largest return, as in published code.
_SCALE_EPSILON = 1e-6


class ProcessAdvantages(NamedTuple):
  """Advantages from process rewards and outcomes.

  Attributes:
    advantages: advantage of each token, 0 off the mask.
    scale: largest magnitude of a return of process rewards, by which they are
      divided if they are normalised; 0 without tokens, NaN if a process reward
      is not finite.
  """

  advantages: Float[Array, 'S T']
  scale: Scalar


def implicit_rewards(
  logprobs: Float[Array, 'S T'],
  ref_logprobs: Float[Array, 'S T'],
  mask: Bool[Array, 'S T'],
  *,
  coefficient: Number = 0.05,
) -> Float[Array, 'S T']:
  """Process rewards implied by a reward model that is a language model.

    r_t = β (log π_φ(y_t) − log π_ref(y_t))

  Args:
    logprobs: log π_φ of each token, in nats.
    ref_logprobs: log π_ref of each token, in nats.
    mask: true for response tokens; entries off the mask may be NaN.
    coefficient: β.

  Returns:
    One reward per token, 0 off the mask.

  Raises:
    ValueError: β is not positive, or shapes differ.

  >>> mask = jnp.array([[True, False]])
  >>> implicit_rewards(-jnp.ones((1, 2)), -jnp.full((1, 2), 3.0), mask).tolist()
  [[0.10000000149011612, 0.0]]

  References:
    Yuan et al., Free Process Rewards without Process Labels, arXiv:2412.01981.
    Cui et al., Process Reinforcement through Implicit Rewards,
    arXiv:2502.01456.
  """
  check_tokens('logprobs', logprobs, mask)
  check_tokens('ref_logprobs', ref_logprobs, mask)
  check_number('coefficient', coefficient, 0, is_open=True)
  dtype = jnp.result_type(logprobs, ref_logprobs, jnp.float32)
  log_ratio = logprobs.astype(dtype) - ref_logprobs.astype(dtype)
  return jnp.where(mask, coefficient * log_ratio, 0)


def process_advantages(
  process_rewards: Float[Array, 'S T'],
  outcomes: Float[Array, ' S'],
  group_ids: Int[Array, ' S'],
  mask: Bool[Array, 'S T'],
  *,
  form: PrimeForm = 'code',
  normalise: bool = True,
  whiten: bool = True,
  process_coefficient: Number = 5.0,
  outcome_coefficient: Number = 5.0,
  discount: Number = 1.0,
) -> ProcessAdvantages:
  """Leave-one-out advantages of process rewards and outcomes (PRIME).

  With n responses to a prompt, r̄_j the mean process reward of the tokens of
  response j and o_j its outcome, the advantage of token t of response i is

    Σ_{s≥t} γ^{s−t} c_p [r_{i,s} − mean of r̄_j over j ≠ i]
      + c_o [o_i − mean of o_j over j ≠ i]                        form='paper'
    Σ_{s≥t} γ^{s−t} {c_p [r_{i,s} n − Σ_j r̄_j] / (n − 1)
      + c_o 1{s is the last token} [o_i − mean of o_j over j ≠ i]} form='code'

  where s runs over the tokens on the mask, and in the form of the code the last
  token has no process reward. In that form a token's deviation from its
  response's mean is n / (n − 1) times as large.

  Normalised process rewards are divided by the largest magnitude of any return
  Σ_{s≥t} r_{i,s} of the batch, plus 1e-6, before everything else. (The public
  code takes the largest of the responses on one device.)

  Args:
    process_rewards: process reward of each token; entries off the mask may be NaN.
    outcomes: outcome of each response; those of responses without a token on the
      mask may be NaN.
    group_ids: responses to the same prompt share an id; a response alone in its
      group has baselines of 0.
    mask: true for response tokens.
    form: which of the two formulas above is computed.
    normalise: whether process rewards are divided by the largest magnitude of a
      return, as described above.
    whiten: whether advantages are whitened over the batch's tokens, see
      `covrl.objectives.whiten`, as in the code.
    process_coefficient: c_p; 5 as in the code. Whitening cancels a factor that
      it has in common with c_o.
    outcome_coefficient: c_o; 5 as in the code.
    discount: γ.

  Raises:
    ValueError: an option is unknown or out of range, or shapes differ.

  References:
    Cui et al., Process Reinforcement through Implicit Rewards,
    arXiv:2502.01456, and the authors' implementation in verl.
  """
  if form not in get_args(PrimeForm):
    raise ValueError(f'form must be one of {get_args(PrimeForm)}, got {form!r}')
  shape = check_tokens('process_rewards', process_rewards, mask)
  check_array('outcomes', outcomes, 'real', 'S', shape[:1])
  check_number('process_coefficient', process_coefficient, 0)
  check_number('outcome_coefficient', outcome_coefficient, 0)
  check_number('discount', discount, 0, 1)
  dtype = jnp.result_type(process_rewards, outcomes, jnp.float32)
  process_rewards = jnp.where(mask, process_rewards.astype(dtype), 0)
  outcomes = jnp.where(jnp.any(mask, axis=1), outcomes.astype(dtype), 0)
  is_last = _is_last(mask)
  if form == 'code':
    # NaN and infinities are kept, so that advantages become NaN.
    process_rewards = jnp.where(
      is_last & jnp.isfinite(process_rewards), 0, process_rewards
    )
  scale = _largest_magnitude(_returns(process_rewards, mask, 1.0), mask)
  if normalise:
    divisor = jnp.where(jnp.isfinite(scale), scale + _SCALE_EPSILON, jnp.nan)
    process_rewards = jnp.where(mask, process_rewards / divisor, 0)
  rewards = process_coefficient * _subtract_baselines(
    process_rewards, group_ids, mask, form
  )
  outcome_advantages = outcome_coefficient * leave_one_out(outcomes, group_ids)
  if form == 'code':
    rewards += jnp.where(is_last, outcome_advantages[:, None], 0)
  advantages = _returns(rewards, mask, discount)
  if form == 'paper':
    advantages += jnp.where(mask, outcome_advantages[:, None], 0)
  if whiten:
    advantages = returns.whiten(advantages, mask)
  return ProcessAdvantages(
    advantages, jnp.where(jnp.isfinite(scale), scale, jnp.nan)
  )


def _subtract_baselines(
  process_rewards: Float[Array, 'S T'],
  group_ids: Int[Array, ' S'],
  mask: Bool[Array, 'S T'],
  form: PrimeForm,
) -> Float[Array, 'S T']:
  """Process rewards minus the mean of the group's other responses.

  Computed as each reward's deviation from its response's mean, plus the leave-one-out
  advantage of that mean, which is exactly 0 where the means of a group are equal.
  """
  lengths = jnp.sum(mask, axis=1, dtype=jnp.int32)
  means = jnp.sum(process_rewards, axis=1) / jnp.maximum(lengths, 1)
  deviations = process_rewards - means[:, None]
  if form == 'code':
    _, size = same_group(means, group_ids)
    num_others = jnp.maximum(size - 1, 1)
    factor = jnp.where(size > 1, size / num_others, 1).astype(
      process_rewards.dtype
    )
    deviations *= factor[:, None]
  advantages = leave_one_out(means, group_ids)
  return jnp.where(mask, deviations + advantages[:, None], 0)


def _returns(
  rewards: Float[Array, 'S T'], mask: Bool[Array, 'S T'], discount: Number
) -> Float[Array, 'S T']:
  """Discounted sums of the rewards from each token of the mask on."""
  sums, _ = gae(
    rewards, jnp.zeros_like(rewards), mask, discount=discount, whiten=False
  )
  return sums


def _largest_magnitude(
  values: Float[Array, 'S T'], mask: Bool[Array, 'S T']
) -> Scalar:
  """The largest magnitude; infinite if a value is not finite."""
  # A maximum over several devices may lose a NaN, but not an infinity.
  magnitudes = jnp.where(jnp.isnan(values), jnp.inf, jnp.abs(values))
  return jnp.max(jnp.where(mask, magnitudes, 0), initial=0)


def _is_last(mask: Bool[Array, 'S T']) -> Bool[Array, 'S T']:
  """Whether a token is the last one of its row's mask."""
  tokens_left = jnp.cumsum(mask[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]
  return mask & (tokens_left == 1)
