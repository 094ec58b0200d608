# SPDX-License-Identifier: Apache-2.0
"""Data types passed between packages, and the legend of array shapes.

In shape annotations: `B` rows of a batch, `S` sequences, `P` unique prompts,
`G` responses per prompt, `T` tokens of a row, `N` tokens in a flat list,
`R` tokens of a response, `V` vocabulary, `D` model width, `H` heads, `K` kv heads,
`L` layers, `k` experts per token.

Arrays that describe *predictions* (`targets`, `loss_mask`, `weights`,
`advantages`, every kind of log-probability in a `TokenBatch`) are aligned with
the position that predicts: entry `t` describes `targets[:, t]`, the token
that follows `tokens[:, t]`. Arrays of `Rollouts` are aligned with the tokens
themselves.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, UInt

Scalar = Float[Array, '']

# Options of token transforms and selectors; each is explained where it is used.
Divergence = Literal['abs', 'k1', 'k2', 'k3', 'full']
Scope = Literal['batch', 'micro_batch']
Score = Literal['batch', 'state', 'exact', 'definition', 'entropy']
SelectionSource = Literal['old', 'current']


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenStats:
  """Statistics of the policy at each token: the `params` of a token chain.

  A cotangent of log π(a) and H is a logit update, because
  ∂ log π(a)/∂z = e_a − π and ∂H/∂z = −π (log π + H).

  Attributes:
    logprobs: log π(a), in nats.
    entropy: H(π), in nats.
    divergence: full KL(π_old ‖ π), in nats; `None` if it was not computed.
    top_entropy: entropy of the policy renormalised on the likely part of the
      vocabulary, in nats; `None` if it was not computed.
  """

  logprobs: Float[Array, 'B T']
  entropy: Float[Array, 'B T']
  divergence: Float[Array, 'B T'] | None = None
  top_entropy: Float[Array, 'B T'] | None = None

  @classmethod
  def template(cls) -> Any:
    """Scalars to initialise a token chain with: its state has no batch shape.

    Typed as `Any`, because optax types the argument of `init` as arrays.

    >>> import covrl
    >>> state = covrl.kl_cov().init(TokenStats.template())
    >>> {leaf.shape for leaf in jax.tree.leaves(state)}
    {()}
    """
    return cls(logprobs=jnp.zeros(()), entropy=jnp.zeros(()))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenMoments:
  """Sums over the vocabulary that some methods need; never differentiated.

  Attributes:
    square: Σ π².
    square_log: Σ π² log π.
    square_log_square: Σ π² log² π.
    filtered_logprobs: log-probability of the token after a filter by min-p, in
      nats, −∞ if the filter removes it; `None` if it was not computed.
  """

  square: Float[Array, 'B T']
  square_log: Float[Array, 'B T']
  square_log_square: Float[Array, 'B T']
  filtered_logprobs: Float[Array, 'B T'] | None = None


class TokenContext(TypedDict, total=False):
  """Keyword arguments of losses and token transforms.

  All entries are optional; a transform that needs a missing one raises an error
  that names it, and an unknown entry is an error too (see `covrl.context_checks`).

  Attributes:
    advantages: `[B, T]`.
    old_logprobs: `[B, T]`, the trainer's, at the start of the rollout's
      updates.
    old_entropy: `[B, T]`, entropy of the same policy.
    old_moments: moments of the same policy.
    mask: bool `[B, T]`, true where the target is a response token.
    weights: `[B, T]`, each token's weight in the objective, 0 off the mask.
    segment_ids: int `[B, T]`, index of the sequence within a packed row.
    sequence_ids: int `[B, T]`, index of the sequence within the run; with `positions` it
      identifies a token in every layout.
    positions: int `[B, T]`, index within the sequence, from 0.
    step: int scalar, the optimiser update.
    key: PRNG key of the run.
    moments: moments of the current policy.
    sampler_logprobs: `[B, T]`, the sampler's, temperature applied, before
      truncation.
    ref_logprobs: `[B, T]`, of the reference policy.
    entropy: scalar, token-weighted mean over the whole optimiser batch.
    score_weight: `[B, T]`, A · ratio · 1{not clipped}, from the loss.
    clipped: bool `[B, T]`, tokens whose gradient the loss has clipped away.
    entropy_change: scalar, nats; change of the entropy of fixed tokens by the
      update before the last, NaN if it was not measured.
    log_ratio_noise: scalar, nats; difference between the scoring and the
      training program on unchanged parameters (the dead zone of penalties).
    decisions: a `covrl.entropy.DecisionCache` of decisions that are taken once
      for the optimiser batch.
    selected: bool `[B, T]`, the tokens that the enclosing `token_masked` has
      selected.
    entropy_prediction: function without arguments that returns the
      `EntropyPrediction` of a coefficient; called by controllers.
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
  decisions: Any
  selected: Bool[Array, 'B T']
  entropy_prediction: Callable[[], Any]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Rollouts:
  """Sampled sequences, one per row, with the sampler's log-probabilities.

  Attributes:
    tokens: prompt (padded on the left) and response (padded on the right).
    positions: index within the sequence, counted from its first real token.
    attention_mask: true for real tokens.
    loss_mask: true for tokens that the policy sampled, including the
      end-of-sequence token.
    sampler_logprobs: log-probabilities of the sampled tokens, in nats,
      temperature applied, before truncation; 0 elsewhere.
    behaviour_logprobs: the same after top-p and top-k.
    sequence_ids: unique within the run.
    group_ids: index of the prompt within the run.
    source_ids: index of the prompt's data source.
    policy_step: optimiser step whose parameters sampled each token; 0 off the
      `loss_mask`.
    truncated: true if the length limit ended the sequence.
    rewards: scores by name.
    experts: experts that the sampler routed each token to, see
      `covrl.models.experts.ExpertRecordSpec`; `None` without routing replay.
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
  policy_step: Int[Array, 'S T']
  truncated: Bool[Array, ' S']
  rewards: dict[str, Float[Array, ' S']]
  experts: UInt[Array, 'S T L k'] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenBatch:
  """Tokens to train on, in any layout: one sequence per row, or packed.

  Attributes:
    tokens: inputs.
    targets: the token that follows each input.
    positions: index within the sequence, from 0.
    segment_ids: index of the sequence within the row, from 1; 0 is padding.
      Tokens attend within their segment only.
    loss_mask: true for targets to be trained on.
    weights: each target's weight in the objective.
    advantages: advantage of each target.
    old_logprobs: log-probability of each target under the trainer's parameters
      at the start of the rollout's updates, in nats.
    old_entropy: entropy of the same predictions, in nats.
    old_moments: moments of the same predictions.
    sampler_logprobs: log-probability of the target reported by the sampler, in
      nats.
    sequence_ids: index within the run of each target's sequence.
    ref_logprobs: log-probability of each target under the reference policy, in
      nats; `None` in a run without one.
    network_targets: per-token inputs of the losses of networks beside the
      policy, such as a critic's returns, by name; empty in a run without them.
    experts: experts to route each input to, see
      `covrl.models.experts.ExpertRecordSpec`; `None` without routing replay.
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
  network_targets: dict[str, Float[Array, 'B T']] = dataclasses.field(
    default_factory=dict
  )
  experts: UInt[Array, 'B T L k'] | None = None


class UpdateMeasurements(NamedTuple):
  """Measurements of an update that the next update reads, in nats.

  Attributes:
    log_ratio_noise: see `TokenContext`.
    entropy_change_since_rollout: entropy of the last update's tokens, minus
      their entropy at the rollout.
    entropy_change: see `TokenContext`.
  """

  log_ratio_noise: Scalar
  entropy_change_since_rollout: Scalar
  entropy_change: Scalar

  @classmethod
  def initial(cls) -> UpdateMeasurements:
    """Values before the first update."""
    return cls(jnp.zeros(()), jnp.zeros(()), jnp.asarray(jnp.nan))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkState:
  """State of a network beside the policy, all of whose parameters are trained.

  Attributes:
    params: the parameters of the network.
    opt_state: state of the parameter chain of the network.
  """

  params: PyTree
  opt_state: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
  """Parameters and states that an optimiser update reads and writes.

  Attributes:
    trainable: parameters that are updated.
    frozen: constant parameters (a reference, the base of an adapter).
    opt_state: state of the parameter chain.
    token_state: state of the token chain; scalars only.
    step: optimiser updates attempted, int32; a skipped update counts.
    last_update: measurements of the last update.
    networks: states of networks beside the policy, such as a critic, by name.
    estimator_state: state of the estimator of advantages; scalars only.
  """

  trainable: PyTree
  frozen: PyTree
  opt_state: PyTree
  token_state: PyTree
  step: Int[Array, '']
  last_update: UpdateMeasurements
  networks: dict[str, NetworkState] = dataclasses.field(default_factory=dict)
  estimator_state: PyTree = ()

  def of_policy(self) -> TrainState:
    """Returns the state without that of networks beside the policy."""
    return dataclasses.replace(self, networks={}, estimator_state=())
