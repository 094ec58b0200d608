# SPDX-License-Identifier: Apache-2.0
"""What a token chain decides once for a whole optimiser batch.

Selections are global: made on the statistics of the whole batch, then applied
to each micro-batch. A chain is run once on the batch with an empty plan, which
records every decision in the order the chain takes them, and once on each
micro-batch with that micro-batch's rows of the plan, which hands them back.
Transforms take part by asking `decide`; the chain itself stays any optax
chain.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.types import Scalar

Decision = TypeVar('Decision')

SCOPES = ('batch', 'micro_batch')


class Selection(NamedTuple):
  """Which tokens a selector chose, and of what.

  Attributes:
    mask: the chosen tokens.
    scores: what they were ranked by; 0 where a selector does not rank.
    threshold: the lowest chosen score; 0 if none was chosen.
    quota: how many it was to choose.
    eligible: how many it could choose from.
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
    """A selection by a selector that says nothing but which tokens."""
    chosen = jnp.sum(mask, dtype=jnp.int32)
    nothing = jnp.zeros((), jnp.int32)
    return cls(
      mask=mask,
      scores=jnp.zeros(mask.shape),
      threshold=jnp.zeros(()),
      quota=chosen,
      eligible=chosen,
      nonfinite=nothing,
      clamped=nothing,
    )


class Plan:
  """Records the decisions of a token chain, or hands recorded ones back.

  Attributes:
    decisions: those of the whole optimiser batch, in the order of the chain.

  >>> plan = Plan()
  >>> plan.decide(lambda: 3)
  3
  >>> Plan(plan.decisions).decide(lambda: 4)
  3
  """

  def __init__(self, decisions: Sequence[PyTree] | None = None) -> None:
    self.decisions: list[Any] = list(decisions or ())
    self._recorded = None if decisions is None else iter(self.decisions)
    # What was taken under this plan, of any scope, in the order of the chain.
    self._taken: list[Any] = []
    self._local: list[Plan] = []

  @classmethod
  def of(cls, context: Mapping[str, Any], scope: str = 'batch') -> Plan:
    """The plan by which a transform decides: the batch's, or one of its own.

    Args:
      context: as passed to a token chain's update.
      scope: `'batch'` shares the decision with every micro-batch of the
        optimiser batch; `'micro_batch'` decides anew in each.

    >>> plan = Plan()
    >>> Plan.of({'plan': plan}) is plan, Plan.of({}) is plan
    (True, False)
    """
    plan = context.get('plan')
    if not isinstance(plan, Plan):
      return cls()
    return plan if scope == 'batch' else plan._locally()

  def decide(self, make: Callable[[], Decision]) -> Decision:
    """The next decision: made now, or the one that was recorded here."""
    if self._recorded is None:
      decision = make()
      self.decisions.append(decision)
    else:
      decision = cast(Decision, self._next())
    self._taken.append(decision)
    return decision

  @property
  def local(self) -> list[Any]:
    """Decisions of scope `'micro_batch'` taken under this plan.

    The plan of a micro-batch holds that micro-batch's; a trainer that reports
    on the optimiser batch adds them up.
    """
    return [each for plan in self._local for each in plan.decisions]

  def selections(self) -> tuple[Selection, ...]:
    """The selections of either scope, in the order of the chain."""
    return tuple(d for d in self._taken if isinstance(d, Selection))

  def _locally(self) -> Plan:
    """A plan of one transform alone, whose decisions are known here."""
    plan = Plan()
    plan._taken = self._taken
    self._local.append(plan)
    return plan

  def _next(self) -> Any:
    """The next recorded decision."""
    for decision in self._recorded or ():
      return decision
    raise ValueError(
      f'a plan of {len(self.decisions)} decisions was recorded by another '
      'token chain: this one takes more'
    )


def check_scope(scope: str) -> None:
  """Refuses a scope that is none."""
  if scope not in SCOPES:
    raise ValueError(f'scope must be one of {SCOPES}, got {scope!r}')
