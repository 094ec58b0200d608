# SPDX-License-Identifier: Apache-2.0
"""What flows through covrl, and the legend of its shapes.

In shape annotations: `B` rows of a batch, `S` sequences, `P` unique prompts,
`G` responses per prompt, `T` tokens of a row, `N` tokens in a flat list,
`V` vocabulary, `D` model width, `H` heads, `K` kv heads.

Arrays that describe *predictions* (`targets`, `loss_mask`, `weights`,
`advantages`, every kind of log-probability in a `TokenBatch`) are aligned with
the position that predicts: entry `t` speaks of `targets[:, t]`, the token
that follows `tokens[:, t]`. Arrays of `Rollouts` are aligned with the tokens
themselves.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

Scalar = Float[Array, '']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenStats:
  """What a token chain calls `params`: the policy, seen at each sampled token.

  A cotangent of these two numbers is a logit update, because
  ∂ log π(a)/∂z = e_a − π and ∂H/∂z = −π (log π + H).

  Attributes:
    logprobs: log π(a), in nats.
    entropy: H(π), in nats.
    divergence: full KL(π_old ‖ π), in nats; `None` where nothing asks for it.
  """

  logprobs: Float[Array, 'B T']
  entropy: Float[Array, 'B T']
  divergence: Float[Array, 'B T'] | None = None

  @classmethod
  def template(cls) -> TokenStats:
    """Scalars to initialise a token chain with: its state has no batch shape.

    >>> import optax
    >>> optax.trace(decay=0.9).init(TokenStats.template()).trace.logprobs.shape
    ()
    """
    return cls(logprobs=jnp.zeros(()), entropy=jnp.zeros(()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMoments:
  """Sums over the vocabulary that exact scores need; never differentiated.

  Attributes:
    square: Σ π².
    square_log: Σ π² log π.
    square_log_square: Σ π² log² π.
  """

  square: Float[Array, 'B T']
  square_log: Float[Array, 'B T']
  square_log_square: Float[Array, 'B T']


class TokenContext(TypedDict, total=False):
  """Everything a token transform may read, passed as keyword arguments.

  All entries are optional; a transform that needs one and does not find it
  fails with a sentence that names it.

  Attributes:
    advantages: `[B, T]`.
    old_logprobs: `[B, T]`, the trainer's, at the start of the rollout's
      updates.
    old_entropy: `[B, T]`, entropy of the same policy.
    old_moments: moments of the same policy.
    mask: bool `[B, T]`, true where the target is a response token.
    weights: `[B, T]`, each token's weight in the objective, 0 off the mask.
    segment_ids: int `[B, T]`, which sequence of a packed row.
    sequence_ids: int `[B, T]`, which sequence of the run: with `positions` a
      token's identity, whatever the layout.
    positions: int `[B, T]`, place within the sequence.
    step: int scalar, the optimiser update.
    key: PRNG key of the run.
    moments: of the current policy.
    sampler_logprobs: `[B, T]`, temperature applied, before truncation.
    ref_logprobs: `[B, T]`, of the reference policy.
    entropy: scalar, token-weighted mean over the whole optimiser batch.
    score_weight: `[B, T]`, A · ratio · 1{not clipped}, from the loss.
    clipped: bool `[B, T]`, tokens whose gradient the loss has clipped away.
    entropy_change: scalar, nats; by how much the update before the last changed
      the entropy of unchanged tokens, NaN where that was not measured.
    log_ratio_noise: scalar, nats; how far the scoring and the training program
      differ on unchanged parameters (the dead zone of penalties).
    plan: decisions taken once for the optimiser batch; see `covrl.Plan`.
    selected: bool `[B, T]`, the tokens that an enclosing `token_masked` lets
      a transform act on.
    outlook: what a coefficient is about to do to the entropy, called by
      controllers; see `covrl.entropy.prediction`.
  """

  advantages: Float[Array, 'B T']
  old_logprobs: Float[Array, 'B T']
  old_entropy: Float[Array, 'B T']
  old_moments: TokenMoments
  mask: Bool[Array, 'B T']
  weights: Float[Array, 'B T']
  segment_ids: Int[Array, 'B T']
  sequence_ids: Int[Array, 'B T']
  positions: Int[Array, 'B T']
  step: Int[Array, '']
  key: Key[Array, '']
  moments: TokenMoments
  sampler_logprobs: Float[Array, 'B T']
  ref_logprobs: Float[Array, 'B T']
  entropy: Scalar
  score_weight: Float[Array, 'B T']
  clipped: Bool[Array, 'B T']
  entropy_change: Scalar
  log_ratio_noise: Scalar
  plan: Any
  selected: Bool[Array, 'B T']
  outlook: Callable[[], Any]


def check_context(context: Mapping[str, object], where: str) -> None:
  """Refuses entries that are not in `TokenContext`.

  Args:
    context: keyword arguments of a loss or a token transform.
    where: name of the function that was called, for the error.

  Raises:
    TypeError: for an unknown entry; names the nearest known one.

  >>> check_context({'advantage': 1.0}, 'kl_cov')
  Traceback (most recent call last):
    ...
  TypeError: kl_cov got an unknown context entry 'advantage'; did you mean
  'advantages'?
  """
  known = TokenContext.__annotations__
  for entry in context:
    if entry not in known:
      nearest = difflib.get_close_matches(entry, known, n=1)
      hint = (
        f'did you mean {nearest[0]!r}?'
        if nearest
        else f'known entries: {", ".join(sorted(known))}'
      )
      raise TypeError(f'{where} got an unknown context entry {entry!r}; {hint}')


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
  """Whole trajectories, one a row, with what the sampler knew of them.

  Attributes:
    tokens: prompt (padded on the left) and response (padded on the right).
    positions: place within the sequence, counted from its first real token.
    attention_mask: true for real tokens.
    loss_mask: true for tokens that the policy sampled, the end-of-sequence
      token among them.
    sampler_logprobs: log-probabilities of the sampled tokens, in nats,
      temperature applied, before truncation; 0 elsewhere.
    behaviour_logprobs: the same after top-p and top-k.
    sequence_ids: unique within the run.
    group_ids: which prompt of the run the sequence answers.
    source_ids: which data source the prompt is from.
    policy_step: optimiser step whose parameters sampled the sequence.
    truncated: true where the length limit, and not the policy, ended it.
    rewards: scores by name.
  """

  tokens: Int[Array, 'S T']
  positions: Int[Array, 'S T']
  attention_mask: Bool[Array, 'S T']
  loss_mask: Bool[Array, 'S T']
  sampler_logprobs: Float[Array, 'S T']
  behaviour_logprobs: Float[Array, 'S T']
  sequence_ids: Int[Array, ' S']
  group_ids: Int[Array, ' S']
  source_ids: Int[Array, ' S']
  policy_step: Int[Array, ' S']
  truncated: Bool[Array, ' S']
  rewards: dict[str, Float[Array, ' S']]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBatch:
  """Tokens to train on, in any layout: one sequence a row, or packed.

  Attributes:
    tokens: inputs.
    targets: the token that follows each input.
    positions: place within the sequence, from 0.
    segment_ids: which sequence of the row, from 1; 0 is padding. Tokens attend
      within their segment only.
    loss_mask: true where the target is to be trained on.
    weights: each target's weight in the objective.
    advantages: of each target.
    old_logprobs: log-probability of each target under the trainer's parameters
      at the start of the rollout's updates, in nats.
    old_entropy: entropy of the same predictions, in nats.
    old_moments: moments of the same predictions.
    sampler_logprobs: what the sampler reported for the target, in nats.
    sequence_ids: which sequence of the run each target belongs to.
    ref_logprobs: log-probability of each target under the reference policy, in
      nats; `None` in a run without one.
  """

  tokens: Int[Array, 'B T']
  targets: Int[Array, 'B T']
  positions: Int[Array, 'B T']
  segment_ids: Int[Array, 'B T']
  loss_mask: Bool[Array, 'B T']
  weights: Float[Array, 'B T']
  advantages: Float[Array, 'B T']
  old_logprobs: Float[Array, 'B T']
  old_entropy: Float[Array, 'B T']
  old_moments: TokenMoments
  sampler_logprobs: Float[Array, 'B T']
  sequence_ids: Int[Array, 'B T']
  ref_logprobs: Float[Array, 'B T'] | None = None


class Measured(NamedTuple):
  """What an update measures and the next one reads; nats.

  Attributes:
    log_ratio_noise: see `TokenContext`.
    entropy_moved: by how much the entropy of the last update's tokens differed
      from what it was at the rollout.
    entropy_change: see `TokenContext`.
  """

  log_ratio_noise: Scalar
  entropy_moved: Scalar
  entropy_change: Scalar

  @classmethod
  def nothing(cls) -> Measured:
    """Before the first update."""
    return cls(jnp.zeros(()), jnp.zeros(()), jnp.asarray(jnp.nan))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Everything an optimiser update reads and writes.

  Attributes:
    trainable: parameters the gradient is taken of.
    frozen: parameters that stay (a reference, the base of an adapter).
    opt_state: state of the parameter chain.
    token_state: state of the token chain; scalars only.
    step: optimiser updates attempted, int32; a skipped update counts.
    measured: by the last update, for the next.
  """

  trainable: PyTree
  frozen: PyTree
  opt_state: PyTree
  token_state: PyTree
  step: Int[Array, '']
  measured: Measured
