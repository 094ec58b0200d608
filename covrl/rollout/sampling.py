# SPDX-License-Identifier: Apache-2.0
"""Token sampling from logits: temperature, top-k, top-p, greedy."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key


class Sampling(NamedTuple):
  """Sampling parameters; traced arrays, so that changes never recompile.

  Attributes:
    temperature: divides the logits; 0 is greedy.
    top_p: samples among the likeliest tokens that together have this
      probability; 1 is all tokens.
    top_k: samples among this many likeliest tokens; 0 is all tokens.
  """

  temperature: Float[Array, '']
  top_p: Float[Array, '']
  top_k: Int[Array, '']

  @classmethod
  def make(
    cls, temperature: float = 1.0, top_p: float = 1.0, top_k: int = 0
  ) -> Sampling:
    """Checks numbers and converts them to arrays.

    Raises:
      ValueError: if a number is out of range.

    >>> float(Sampling.make(temperature=0.5).top_p)
    1.0
    """
    if not 0.0 <= temperature < float('inf'):
      raise ValueError(
        f'temperature must be finite and at least 0, got {temperature}'
      )
    if not 0.0 < top_p <= 1.0:
      raise ValueError(f'top_p must lie in (0, 1], got {top_p}')
    if top_k < 0 or top_k != int(top_k):
      raise ValueError(f'top_k must be a whole number from 0, got {top_k}')
    return cls(
      temperature=jnp.asarray(temperature, jnp.float32),
      top_p=jnp.asarray(top_p, jnp.float32),
      top_k=jnp.asarray(top_k, jnp.int32),
    )


def sample_token(
  logits: Float[Array, 'S V'], keys: Key[Array, ' S'], sampling: Sampling
) -> tuple[Int[Array, ' S'], Float[Array, ' S'], Float[Array, ' S']]:
  """Samples one token per row with the row's own PRNG key.

      token = argmax(log q + Gumbel noise), q the truncated distribution

  With temperature 0 there is no noise, and log-probabilities are those of
  temperature 1. Logits may be −∞, but not all of a row.

  Args:
    logits: logits of the next token, in float32.
    keys: one PRNG key per row; a row's token does not depend on other rows.
    sampling: temperature and truncation.

  Returns:
    The tokens; their log-probabilities with temperature and before truncation,
    in nats; and the same after truncation.
  """
  greedy = sampling.temperature == 0
  temperature = jnp.where(greedy, 1.0, sampling.temperature)
  logprobs = jax.nn.log_softmax(logits / temperature, axis=-1)
  truncates = (sampling.top_p < 1) | (
    (sampling.top_k > 0) & (sampling.top_k < logits.shape[-1])
  )
  # The sort is the most expensive part of a step: it runs only if needed.
  truncated = jax.lax.cond(
    truncates, _truncated, lambda logprobs, _: logprobs, logprobs, sampling
  )
  noise = jax.vmap(
    lambda key: jax.random.gumbel(key, logits.shape[-1:], logits.dtype)
  )(keys)
  token = jnp.argmax(truncated + jnp.where(greedy, 0.0, noise), axis=-1)
  token = token.astype(jnp.int32)
  return token, _at(logprobs, token), _at(truncated, token)


def truncation_mask(
  logprobs: Float[Array, 'S V'],
  *,
  top_p: Float[Array, ''],
  top_k: Int[Array, ''],
) -> Bool[Array, 'S V']:
  """Mask of the tokens that top-k and top-p keep.

  First the `top_k` likeliest tokens; of these, renormalised, the smallest set of
  likeliest tokens whose probability reaches `top_p`. Ties go to the smaller
  token id. The likeliest token is always kept.

  Args:
    logprobs: normalised log-probabilities, in nats.
    top_p: probability to keep, in (0, 1].
    top_k: number of tokens to keep; 0 is all.

  References:
    Fan et al., "Hierarchical Neural Story Generation", arXiv:1805.04833
    (top-k). Holtzman et al., "The Curious Case of Neural Text Degeneration",
    arXiv:1904.09751, section 3.1 (top-p).
  """
  size = logprobs.shape[-1]
  ranks = jnp.arange(size)
  top_k = jnp.where(top_k > 0, top_k, size)
  ordered = -jnp.sort(-logprobs, axis=-1)
  probs = jnp.where(ranks < top_k, jnp.exp(ordered), 0.0)
  probs = probs / jnp.sum(probs, axis=-1, keepdims=True)
  before = jnp.cumsum(probs, axis=-1) - probs
  in_nucleus = (before < top_p) | (top_p >= 1)
  count = jnp.sum(in_nucleus & (ranks < top_k), axis=-1, keepdims=True)

  # Tokens above the count-th value, and the first of those equal to it.
  threshold = jnp.take_along_axis(ordered, count - 1, axis=-1)
  above = logprobs > threshold
  tied = logprobs == threshold
  num_tied = count - jnp.sum(above, axis=-1, keepdims=True)
  return above | (tied & (jnp.cumsum(tied, axis=-1) <= num_tied))


def _truncated(
  logprobs: Float[Array, 'S V'], sampling: Sampling
) -> Float[Array, 'S V']:
  """Log-probabilities renormalised over the kept tokens, −∞ elsewhere."""
  mask = truncation_mask(logprobs, top_p=sampling.top_p, top_k=sampling.top_k)
  return jax.nn.log_softmax(jnp.where(mask, logprobs, -jnp.inf), axis=-1)


def _at(
  logprobs: Float[Array, 'S V'], token: Int[Array, ' S']
) -> Float[Array, ' S']:
  """Each row's entry at its token."""
  return jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
