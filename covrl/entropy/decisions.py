# SPDX-License-Identifier: Apache-2.0
"""Decisions that a token chain takes once for a whole optimiser batch.

Selections are global: made on the statistics of the whole batch, then applied
to each micro-batch. A chain runs once on the batch with an empty
`DecisionCache`, which records every decision, and once on each micro-batch with
a cache of that micro-batch's rows of the decisions, which returns them.
Transforms take part by calling `decide`; the chain itself stays any optax
chain.
"""

from __future__ import annotations

import collections
import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, TypeVar, cast, get_args

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.statistics import Truncation
from covrl.types import Scalar, Scope, SelectionSource

Decision = TypeVar('Decision')

SCOPES = get_args(Scope)


class Selection(NamedTuple):
  """Tokens that a selector chose, with the scores and counts behind the choice.

  Attributes:
    mask: the chosen tokens.
    scores: scores that tokens were ranked by; 0 if the selector does not rank.
    threshold: the lowest chosen score; 0 if no token was chosen.
    quota: number of tokens to choose.
    eligible: number of tokens that could be chosen.
    nonfinite: tokens left out because their statistics are not finite.
    clamped: 1 if a traced fraction was outside its range and was clamped.
  """

  mask: Bool[Array, 'B T']
  scores: Float[Array, 'B T']
  threshold: Scalar
  quota: Int[Array, '']
  eligible: Int[Array, '']
  nonfinite: Int[Array, '']
  clamped: Int[Array, '']

  @classmethod
  def of_mask(cls, mask: Bool[Array, 'B T']) -> Selection:
    """A selection by a selector that returns nothing but a mask."""
    num_chosen = jnp.sum(mask, dtype=jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return cls(
      mask=mask,
      scores=jnp.zeros(mask.shape),
      threshold=jnp.zeros(()),
      quota=num_chosen,
      eligible=num_chosen,
      nonfinite=zero,
      clamped=zero,
    )


class DecisionCache:
  """Records the decisions of a token chain, or returns recorded ones.

  A decision's key is the path of the transform that takes it: the names of the
  enclosing transforms, each numbered among its siblings of the same name, and
  the name of the decision, as in `'token_masked[0]/selection'`.

  Attributes:
    decisions: decisions of the whole optimiser batch by key.
    micro_batch_decisions: decisions of scope `'micro_batch'` by key. They are taken anew in
      each micro-batch; to report on the optimiser batch, add them up.
    sources: statistics that the chain's selectors read.
    truncations: truncated policies whose statistics the chain reads.
    scheduled: values of schedules of the step and their largest allowed values, by
      transform and argument; the smallest is 0.

  >>> recorded = DecisionCache()
  >>> with recorded.transform('kl_cov'):
  ...   recorded.decide('selection', lambda: 3)
  3
  >>> recorded.decisions
  {'kl_cov[0]/selection': 3}
  >>> replayed = DecisionCache(recorded.decisions)
  >>> with replayed.transform('kl_cov'):
  ...   replayed.decide('selection', lambda: 4)
  3
  """

  def __init__(self, recorded: Mapping[str, PyTree] | None = None) -> None:
    self.decisions: dict[str, Any] = dict(recorded or {})
    self.micro_batch_decisions: dict[str, Any] = {}
    self.sources: set[SelectionSource] = set()
    self.truncations: set[Truncation] = set()
    self.scheduled: dict[str, tuple[ArrayLike, float]] = {}
    self._is_replay = recorded is not None
    self._selections: dict[str, Selection] = {}
    self._path: tuple[str, ...] = ()
    self._siblings: collections.Counter[tuple[str, ...]] = collections.Counter()

  @classmethod
  def of(cls, context: Mapping[str, Any]) -> DecisionCache:
    """The cache of a context, or a new one if it has none.

    Raises:
      TypeError: `decisions` is not a `DecisionCache`.
    """
    cache = context.get('decisions')
    if cache is not None and not isinstance(cache, DecisionCache):
      raise TypeError(f'decisions must be a DecisionCache, got {cache!r:.80}')
    return cls() if cache is None else cache

  @contextlib.contextmanager
  def transform(self, name: str) -> Iterator[None]:
    """Appends a transform to the path of the decisions taken within."""
    outer = self._path
    index = self._siblings[*outer, name]
    self._siblings[*outer, name] += 1
    self._path = (*outer, f'{name}[{index}]')
    try:
      yield
    finally:
      self._path = outer

  def decide(
    self, name: str, make: Callable[[], Decision], scope: Scope = 'batch'
  ) -> Decision:
    """Returns a recorded decision, or takes and records it.

    Args:
      name: name of the decision within the current transform.
      make: takes the decision, if it has not been recorded.
      scope: `'batch'` shares the decision with every micro-batch of the
        optimiser batch; `'micro_batch'` decides anew in each.

    Raises:
      ValueError: if decisions are replayed and this one was not recorded.
    """
    key = '/'.join((*self._path, name))
    decisions = (
      self.decisions if scope == 'batch' else self.micro_batch_decisions
    )
    if key not in decisions:
      if self._is_replay and scope == 'batch':
        raise ValueError(
          f'decision {key!r} is missing: the decisions were recorded by another '
          f'token chain, which took {sorted(decisions)}'
        )
      decisions[key] = make()
    decision = cast(Decision, decisions[key])
    if isinstance(decision, Selection):
      self._selections[key] = decision
    return decision

  def record_scheduled(
    self, argument: str, value: ArrayLike, largest: float = math.inf
  ) -> None:
    """Records the value of a schedule, an argument of the current transform."""
    key = '/'.join((*self._path, argument))
    self.scheduled[key] = (value, largest)

  def selections(self) -> tuple[Selection, ...]:
    """The selections of either scope, in the order of the chain."""
    return tuple(self._selections.values())


def check_scope(scope: Scope) -> None:
  """Refuses an unknown scope."""
  if scope not in SCOPES:
    raise ValueError(f'scope must be one of {SCOPES}, got {scope!r}')
