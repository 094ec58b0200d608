# SPDX-License-Identifier: Apache-2.0
"""Estimators: advantages of tokens from rewards and networks' outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

from jaxtyping import Array, Float, Int, PyTree

from covrl.types import Scalar, TokenBatch


class CreditInputs(NamedTuple):
  """Inputs of an estimate: all sequences of an iteration.

  Attributes:
    rows: one sequence per row, with the policy's statistics from before the
      updates, and the reference policy's if there is one.
    rewards: total reward of each sequence; of those without a score, whose mask
      is empty, it may be NaN.
    group_ids: sequences of the same prompt share an id.
    update_ids: index of the iteration's update that trains on each sequence.
    outputs: each network's number per token, as it is scored: before its
      updates, or after those of a network that is updated before.
  """

  rows: TokenBatch
  rewards: Float[Array, ' S']
  group_ids: Int[Array, ' S']
  update_ids: Int[Array, ' S']
  outputs: dict[str, Float[Array, 'S T']]


class Credit(NamedTuple):
  """Estimates for all sequences of an iteration.

  Attributes:
    advantages: advantage of each token, for the policy.
    credit: `TokenBatch.credit`, for the losses of networks.
    metrics: scalars, logged with every update of the iteration.
  """

  advantages: Float[Array, 'S T']
  credit: dict[str, Float[Array, 'S T']]
  metrics: dict[str, Scalar]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimator:
  """Estimates advantages per token, in place of `Recipe.advantages`.

  Attributes:
    init: `() -> state`; scalars that are saved with the run.
    estimate: `(state, inputs) -> (credit, next state)`, a pure function.
    networks: names of the networks whose outputs it reads.
    output: the output that these must have; see `Network.output`.
    credit: names of the entries of `Credit.credit`.
    reads_reference: whether it, or a network's loss, reads the reference
      policy's log-probabilities and the policy's own.
    targets: `inputs -> credit`, all entries of `credit` without any output, for
      networks that are updated before they are scored; `None` without such.
    settings: names of the config sections that it and its networks read.
  """

  init: Callable[[], PyTree]
  estimate: Callable[[PyTree, CreditInputs], tuple[Credit, PyTree]]
  networks: tuple[str, ...] = ()
  output: Literal['values', 'logprobs'] | None = None
  credit: tuple[str, ...] = ()
  reads_reference: bool = False
  targets: Callable[[CreditInputs], dict[str, Float[Array, 'S T']]] | None = (
    None
  )
  settings: tuple[str, ...] = ()
