# SPDX-License-Identifier: Apache-2.0
"""Warnings about configurations that run but do not do what they say."""

from __future__ import annotations

from collections.abc import Iterator

import jax
from jaxtyping import PyTree

from covrl.config import Config
from covrl.entropy import DivergencePenaltyState, TokenMaskedState
from covrl.entropy.base import init_token_state
from covrl.train.compiled import Algorithm


def warnings(config: Config, algorithm: Algorithm) -> Iterator[str]:
  """One sentence for each thing the user would want to know before waiting."""
  token_state = init_token_state(algorithm.token_tx)
  if (
    _holds(token_state, DivergencePenaltyState)
    and config.updates_per_iteration == 1
  ):
    yield (
      'a divergence penalty has no gradient where π = π_old, and with one '
      'update per iteration (train.sequences_per_update = '
      f'{config.train.sequences_per_update}) that is always: it does nothing'
    )
  most = config.train.sequences_per_update * config.rollout.max_response_length
  if (
    _holds(token_state, TokenMaskedState) and config.entropy.fraction * most < 1
  ):
    yield (
      f'entropy.fraction = {config.entropy.fraction:g} selects no token of an '
      f'update, which has at most {most} response tokens'
    )
  if config.rollout.top_p < 1 or config.rollout.top_k > 0:
    yield (
      'with top-p or top-k below the whole vocabulary the sampler is not the '
      'policy that is trained: importance weights are biased'
    )


def _holds(tree: PyTree, kind: type) -> bool:
  leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, kind))
  return any(isinstance(leaf, kind) for leaf in leaves)
