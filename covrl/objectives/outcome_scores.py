# SPDX-License-Identifier: Apache-2.0
"""Loss and diagnostics of a reward model that predicts outcomes of responses."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, check_number
from covrl.objectives.advantages import same_group
from covrl.objectives.base import Number
from covrl.objectives.segments import sequence_sums
from covrl.statistics.exact import count_true, exact_sum
from covrl.types import Scalar


class OutcomeAux(NamedTuple):
  """Results of `outcome_cross_entropy` at each token, not differentiated.

  Attributes:
    losses: cross-entropy of the token's response, in nats; 0 off the mask.
    scores: logit of the predicted outcome of the token's response.
  """

  losses: Float[Array, 'B T']
  scores: Float[Array, 'B T']


def outcome_cross_entropy(
  logprobs: Float[Array, 'B T'],
  *,
  ref_logprobs: Float[Array, 'B T'],
  labels: Float[Array, 'B T'],
  mask: Bool[Array, 'B T'],
  weights: Float[Array, 'B T'],
  segment_ids: Int[Array, 'B T'] | None = None,
  coefficient: Number = 0.05,
) -> tuple[Scalar, OutcomeAux]:
  """Cross-entropy of outcomes and the probabilities that a reward model implies.

    −o log σ(s) − (1 − o) log(1 − σ(s)),    s = β Σ_t (log π_φ − log π_ref)

  over the tokens of a response. Every token of a response has the loss of the
  response, so that weights whose sum over a response is 1 / S give the mean over
  S responses in any layout.

  Args:
    logprobs: log π_φ of each token, in nats.
    ref_logprobs: log π_ref of each token, in nats; not differentiated.
    labels: o, the outcome of the token's response, in [0, 1]; NaN and values
      outside make its loss NaN.
    mask: true for response tokens; entries off the mask may be NaN.
    weights: weight of each token.
    segment_ids: index of the sequence within the row; `None` where a row is one
      sequence.
    coefficient: β.

  Returns:
    Σ weights · loss, and results per token.

  Raises:
    ValueError: β is not positive, or shapes differ.

  >>> mask, ones = jnp.array([[True, True]]), jnp.ones((1, 2))
  >>> value, aux = outcome_cross_entropy(
  ...   -ones, ref_logprobs=-2 * ones, labels=ones, mask=mask, weights=ones / 2,
  ...   coefficient=0.5)
  >>> round(value.item(), 4), aux.scores.tolist()
  (0.3133, [[1.0, 1.0]])

  References:
    Cui et al., Process Reinforcement through Implicit Rewards,
    arXiv:2502.01456.
  """
  shape = check_array('mask', mask, 'bool', 'B T')
  for name, array in (
    ('logprobs', logprobs),
    ('ref_logprobs', ref_logprobs),
    ('labels', labels),
    ('weights', weights),
  ):
    check_array(name, array, 'real', 'B T', shape)
  if segment_ids is not None:
    check_array('segment_ids', segment_ids, 'int', 'B T', shape)
  check_number('coefficient', coefficient, 0, is_open=True)
  dtype = jnp.promote_types(logprobs.dtype, jnp.float32)

  def masked(x: Float[Array, 'B T']) -> Float[Array, 'B T']:
    return jnp.where(mask, x.astype(dtype), 0)

  log_ratio = masked(logprobs) - jax.lax.stop_gradient(masked(ref_logprobs))
  scores = coefficient * sequence_sums(log_ratio, segment_ids)
  outcomes = masked(labels)
  is_known = (outcomes >= 0) & (outcomes <= 1)
  losses = masked(jax.nn.softplus(scores) - outcomes * scores)
  losses = jnp.where(is_known, losses, jnp.nan)
  value = jnp.sum(masked(weights) * losses)
  return value, jax.lax.stop_gradient(OutcomeAux(losses, scores))


def pair_accuracy(
  scores: Float[Array, ' S'],
  labels: Bool[Array, ' S'],
  group_ids: Int[Array, ' S'],
) -> Scalar:
  """Share of pairs (correct, incorrect response) that the scores order correctly.

  Equal scores count half.

  Args:
    scores: score of each response.
    labels: whether a response is correct.
    group_ids: responses to the same prompt share an id; pairs are of responses
      to the same prompt.

  Returns:
    The share of all groups' pairs; NaN without a pair, and if a score of a
    response in a pair is NaN.

  >>> labels, ids = jnp.array([True, False, False]), jnp.zeros(3, int)
  >>> pair_accuracy(jnp.array([0.5, 0.1, 0.9]), labels, ids).item()
  0.5
  """
  check_array('scores', scores, 'real', 'S')
  same, _ = same_group(scores, group_ids)
  check_array('labels', labels, 'bool', 'S', scores.shape)
  pairs = same & labels[:, None] & ~labels[None, :]
  is_above = scores[:, None] > scores[None, :]
  is_tie = scores[:, None] == scores[None, :]
  num_pairs, num_ordered = (
    count_true(pairs),
    count_true(pairs & (is_above | is_tie | is_above.T)),
  )
  twice_correct = 2 * count_true(pairs & is_above) + count_true(pairs & is_tie)
  accuracy = twice_correct / (2 * jnp.maximum(num_pairs, 1))
  return jnp.where(
    (num_pairs > 0) & (num_ordered == num_pairs), accuracy, jnp.nan
  )


def calibration_error(
  probabilities: Float[Array, ' S'],
  labels: Bool[Array, ' S'],
  mask: Bool[Array, ' S'],
  *,
  bins: int = 10,
) -> Scalar:
  """Expected calibration error of predicted probabilities.

    Σ_b |Σ_{i in b} (p_i − o_i)| / n

  over bins of equal width of the probability.

  Args:
    probabilities: predicted probability that a response is correct.
    labels: whether the response is correct.
    mask: responses that count.
    bins: number of bins.

  Returns:
    The error, in [0, 1]; NaN without responses, and if a probability does not
    lie in [0, 1].

  >>> labels = jnp.array([True, False])
  >>> calibration_error(jnp.array([0.75, 0.25]), labels, labels | ~labels).item()
  0.25

  References:
    Guo et al., On Calibration of Modern Neural Networks, arXiv:1706.04599, eq. 3.
  """
  shape = check_array('mask', mask, 'bool', 'S')
  check_array('probabilities', probabilities, 'real', 'S', shape)
  check_array('labels', labels, 'bool', 'S', shape)
  if isinstance(bins, bool) or not isinstance(bins, int) or bins < 1:
    raise ValueError(f'bins must be a positive integer, got {bins!r}')
  gaps = probabilities - labels.astype(probabilities.dtype)
  is_known = (probabilities >= 0) & (probabilities <= 1)
  gaps = jnp.where(is_known, gaps, jnp.nan)
  valid_probabilities = jnp.where(is_known, probabilities, 0)
  indices = jnp.clip(jnp.floor(valid_probabilities * bins), 0, bins - 1).astype(
    jnp.int32
  )
  errors = jax.vmap(
    lambda index: jnp.abs(exact_sum(gaps, mask & (indices == index)))
  )(jnp.arange(bins))
  return jnp.sum(errors) / count_true(mask)
