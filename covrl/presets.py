# SPDX-License-Identifier: Apache-2.0
"""Published runs, whole: loss, token chain, optimiser and the numbers around.

The public scripts of the covariance methods differ from one another and from
their libraries' defaults in fractions, coefficients and clips that no one of
them states in one place. Each preset here does.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from covrl.entropy import clip_cov, kl_cov
from covrl.objectives import LossAux, clipped_surrogate, policy_gradient
from covrl.types import Scalar

METHODS = ('kl_cov', 'clip_cov')

# What all of these runs share, under the names of a config's fields.
_SHARED = {
  'rollout.prompts_per_iteration': 256,
  'rollout.responses_per_prompt': 8,
  'rollout.max_prompt_length': 2048,
  'rollout.max_response_length': 8192,
  'rollout.temperature': 1.0,
  'rollout.top_p': 1.0,
  'train.sequences_per_update': 256,
  'train.max_gradient_norm': 1.0,
  'train.weights': 'token-mean',
  'entropy.selection_source': 'current',
}


class Preset(NamedTuple):
  """A published algorithm with its published numbers.

  Attributes:
    loss: the policy loss, its clip bound.
    token_tx: the token chain.
    tx: the parameter chain.
    settings: the same numbers, and those of the rollout, by the names of
      `covrl.config.Config`'s fields; 256 prompts × 8 responses in 8 updates.
  """

  loss: Callable[..., tuple[Scalar, LossAux]]
  token_tx: optax.GradientTransformationExtraArgs
  tx: optax.GradientTransformation
  settings: Mapping[str, int | float | str]


def paper_7b(method: str = 'kl_cov', *, scope: str = 'batch') -> Preset:
  """The covariance methods as published with Qwen2.5-7B.

    KL-Cov     fraction 2e-3, coefficient 1, no clip of any kind
    Clip-Cov   fraction 2e-4, 1 < covariance < 5, PPO clip [0, 2]
    both       current statistics, at least one token, learning rate 5e-7

  Advantages are group-relative; groups of equal reward were dropped and
  redrawn, at most ten times an iteration. The scripts select in each
  micro-batch of each device, which no other layout can repeat:
  `scope='micro_batch'` comes nearest, `'batch'` is what the paper says.

  Args:
    method: `'kl_cov'` or `'clip_cov'`.
    scope: see `covrl.token_masked`.

  Raises:
    ValueError: if the method or the scope is unknown.

  References:
    Cui et al., `The Entropy Mechanism of Reinforcement Learning for Reasoning
    Language Models <https://arxiv.org/abs/2505.22617>`_, 2025, and its scripts.

  >>> preset = paper_7b()
  >>> preset.settings['entropy.fraction'], preset.settings['train.learning_rate']
  (0.002, 5e-07)
  """
  return _preset(method, scope, kl_cov_fraction=2e-3, learning_rate=5e-7)


def paper_32b(method: str = 'kl_cov', *, scope: str = 'batch') -> Preset:
  """The same with Qwen2.5-32B: KL-Cov's fraction 2e-4, learning rate 1e-6.

  Args:
    method: see `paper_7b`.
    scope: see `paper_7b`.

  Raises:
    ValueError: as `paper_7b`.

  >>> paper_32b().settings['entropy.fraction']
  0.0002
  """
  return _preset(method, scope, kl_cov_fraction=2e-4, learning_rate=1e-6)


def verl_default(method: str = 'kl_cov', *, scope: str = 'batch') -> Preset:
  """What verl does if it is told the name of the method and nothing else.

    KL-Cov     fraction 2e-4, coefficient 0.1 (its docstring says 1), no clip
    Clip-Cov   fraction 2e-4, 1 < covariance < 5, PPO clip [0.8, 1.2]

  Batch, lengths and optimiser are those of `paper_32b`, since verl's own say
  nothing of this method.

  Args:
    method: see `paper_7b`.
    scope: see `paper_7b`.

  Raises:
    ValueError: as `paper_7b`.

  >>> verl_default().settings['entropy.coefficient']
  0.1
  """
  return _preset(
    method,
    scope,
    kl_cov_fraction=2e-4,
    learning_rate=1e-6,
    coefficient=0.1,
    clip=0.2,
  )


def _preset(
  method: str,
  scope: str,
  *,
  kl_cov_fraction: float,
  learning_rate: float,
  coefficient: float = 1.0,
  clip: float = 1.0,
) -> Preset:
  """A preset of one of the two methods."""
  if method not in METHODS:
    raise ValueError(f'method must be one of {METHODS}, got {method!r}')
  published: dict[str, Any] = {
    'scope': scope,
    'selection_source': 'current',
    'minimum': 1,
  }
  settings = {**_SHARED, 'train.learning_rate': learning_rate}
  if method == 'kl_cov':
    loss = policy_gradient
    token_tx = kl_cov(kl_cov_fraction, coefficient, dead_zone=0.0, **published)
    settings |= {
      'entropy.fraction': kl_cov_fraction,
      'entropy.coefficient': coefficient,
    }
  else:
    fraction, low, high = 2e-4, 1.0, 5.0
    loss = functools.partial(
      clipped_surrogate, low=clip, high=clip, max_log_ratio=None
    )
    token_tx = clip_cov(fraction, low, high, **published)
    settings |= {
      'entropy.fraction': fraction,
      'entropy.low': low,
      'entropy.high': high,
      'train.low': clip,
      'train.high': clip,
    }
  tx = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(learning_rate, b1=0.9, b2=0.999, weight_decay=0.0),
  )
  return Preset(loss, token_tx, tx, settings)
