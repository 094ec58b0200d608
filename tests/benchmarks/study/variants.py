# SPDX-License-Identifier: Apache-2.0
"""The study's variants: settings of one loss and one token chain.

The settings are arrays, so that all variants run the same compiled update. A test
compares it with the chains that recipes would use.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import covrl
from covrl.selectors import random_tokens, top_score

Ranking = Literal['batch', 'exact', 'random']
RANKINGS: tuple[Ranking, ...] = ('batch', 'exact', 'random')
UNCLIPPED = 1e9


class VariantOptions(NamedTuple):
  """Settings of the loss and of the token chain, numbers or scalar arrays.

  Attributes:
    low: clip range below 1.
    high: clip range above 1.
    bonus: coefficient of the entropy bonus at step 0.
    target: target entropy, in nats, of a controlled bonus; negative for the
      coefficient above.
    penalty: coefficient of the divergence penalty at step 0.
    fraction: share of the tokens that the penalty acts on.
    ranking: index in `RANKINGS`, how these tokens are chosen.
    detached: share of the tokens whose gradient Clip-Cov removes.
    annealed: 1 if both coefficients fall to 0 along a line, else 0.
    updates: updates of the run, the length of that line.
  """

  low: Any = 0.2
  high: Any = 0.2
  bonus: Any = 0.0
  target: Any = -1.0
  penalty: Any = 0.0
  fraction: Any = 0.02
  ranking: Any = 0
  detached: Any = 0.0
  annealed: Any = 0.0
  updates: Any = 1.0

  def annealed_value(self, start: Any, step: Any) -> jax.Array:
    """A coefficient at a step: constant, or falling to 0."""
    progress = jnp.clip(jnp.asarray(step) / self.updates, 0, 1)
    return jnp.asarray(start) * (1 - self.annealed * progress)

  def loss(self) -> Any:
    """The policy loss."""
    return functools.partial(
      covrl.clipped_surrogate, low=self.low, high=self.high
    )

  def token_tx(self) -> optax.GradientTransformation:
    """The token chain: a penalty and Clip-Cov on selected tokens, a bonus."""
    selectors = [
      top_score(self.fraction, score='batch'),
      top_score(self.fraction, score='exact'),
      random_tokens(self.fraction),
    ]

    def select(stats: Any, **context: Any) -> Any:
      masks = [selector(stats, **context) for selector in selectors]
      index = jnp.asarray(self.ranking, jnp.int32)
      return jax.tree.map(
        lambda *choices: jnp.choose(index, choices, mode='clip'), *masks
      )

    return optax.chain(
      covrl.token_masked(
        covrl.add_divergence_penalty(
          lambda step: self.annealed_value(self.penalty, step)
        ),
        select,
      ),
      covrl.clip_cov(self.detached, low=0.1, high=5.0),
      covrl.entropy_bonus(_BonusCoefficient(self)),
    )


class _BonusCoefficient(NamedTuple):
  """Coefficient of the bonus: along a line, or controlled to a target."""

  options: VariantOptions

  @property
  def _controller(self) -> Any:
    return covrl.target_entropy(jnp.maximum(self.options.target, 0.0))

  def init(self) -> Any:
    """State of the controller."""
    return self._controller.init()

  def update(self, state: Any, **context: Any) -> Any:
    """The controller's next state."""
    return self._controller.update(state, **context)

  def __call__(self, state: Any, **context: Any) -> Any:
    """The coefficient at the context's step."""
    return jnp.where(
      jnp.asarray(self.options.target) >= 0,
      self._controller(state, **context),
      self.options.annealed_value(self.options.bonus, context['step']),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
  """A loss and a token chain with a name, with a setting to be tuned or without.

  Attributes:
    name: name in tables and directories.
    options: settings of the loss and of the token chain.
    tuned: setting that is chosen on other seeds, empty for none.
    choices: the values to choose from.
  """

  name: str
  options: VariantOptions
  tuned: str = ''
  choices: tuple[float, ...] = ()

  def with_value(self, value: float) -> Variant:
    """The same variant with another value of its tuned setting."""
    options = self.options._replace(**{self.tuned: value})
    return dataclasses.replace(self, options=options)


_ALPHAS = (1e-4, 1e-3, 5e-3, 1e-2)
_PENALTIES = (1.0, 3.0, 10.0)
_UNCLIPPED_OPTIONS = VariantOptions(low=1.0, high=UNCLIPPED)


def _penalised(
  name: str, ranking: Ranking, *, annealed: bool = False
) -> Variant:
  """KL-Cov's penalty on tokens that are chosen by a ranking."""
  options = _UNCLIPPED_OPTIONS._replace(
    penalty=math.nan,
    ranking=RANKINGS.index(ranking),
    annealed=float(annealed),
  )
  return Variant(
    name=name, options=options, tuned='penalty', choices=_PENALTIES
  )


VARIANTS = {
  variant.name: variant
  for variant in (
    Variant(name='grpo', options=VariantOptions()),
    Variant(name='no_clip', options=_UNCLIPPED_OPTIONS),
    Variant(name='clip_higher', options=VariantOptions(high=0.28)),
    *(
      Variant(name=f'bonus_{a:g}', options=VariantOptions(bonus=a))
      for a in _ALPHAS
    ),
    Variant(
      name='bonus_annealed',
      options=VariantOptions(bonus=math.nan, annealed=1.0),
      tuned='bonus',
      choices=(0.01, 0.03, 0.1),
    ),
    Variant(
      name='target_entropy',
      options=VariantOptions(target=math.nan),
      tuned='target',
      choices=(0.05, 0.1, 0.2),
    ),
    Variant(
      name='clip_cov',
      options=VariantOptions(low=1.0, high=1.0, detached=math.nan),
      tuned='detached',
      choices=(0.002, 0.01, 0.05),
    ),
    _penalised('kl_cov', 'batch'),
    _penalised('kl_cov_annealed', 'batch', annealed=True),
    _penalised('exact_score', 'exact'),
    _penalised('random_k', 'random'),
    Variant(
      name='kl_cov_beta0', options=_UNCLIPPED_OPTIONS._replace(penalty=0.0)
    ),
  )
}
"""All variants, in the order of the tables. A tuned setting is NaN until it is set."""
