# SPDX-License-Identifier: Apache-2.0
"""Rematerialisation policies: activations that the backward pass recomputes.

A block's input is always saved. The policies, with the numbers saved per token
beyond it, for model width D, query heads × head width A, key heads × head width
K and feed-forward width F:

  nothing     recomputes nothing: saves all that the derivative reads (on CPUs,
              without the gate's activation)
  cheap       recomputes all but matrix products: saves D + 2 A + 2 K + 2 F
  gate        like cheap, and recomputes the gate's product: saves F less
  mlp         recomputes the feed-forward layer: saves D + 2 A + 2 K
  everything  recomputes the whole block: saves nothing
  host        like cheap, saved to the host's memory
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import jax

RematPolicy = Literal['nothing', 'cheap', 'gate', 'mlp', 'everything', 'host']

# Names of the activations of attention.
_ATTENTION = ('query', 'key', 'value', 'attended', 'attention_residual')

# Names of the activations that each policy saves; `None` is all.
REMAT_POLICIES: dict[RematPolicy, tuple[str, ...] | None] = {
  'nothing': None,
  'cheap': (*_ATTENTION, 'gate', 'up'),
  'gate': (*_ATTENTION, 'up'),
  'mlp': _ATTENTION,
  'everything': (),
  'host': (*_ATTENTION, 'gate', 'up'),
}


def with_remat(
  body: Callable[..., Any], policy: RematPolicy
) -> Callable[..., Any]:
  """Applies `jax.checkpoint` with a policy to the body of a scan over blocks.

  Args:
    body: body of the scan.
    policy: a name in `REMAT_POLICIES`.
  """
  names = REMAT_POLICIES[policy]
  if names is None:
    return body
  policies = jax.checkpoint_policies
  if policy == 'host':
    checkpoint_policy = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(names),
      offload_src='device',
      offload_dst='pinned_host',
    )
  else:
    checkpoint_policy = policies.save_only_these_names(*names)
  return jax.checkpoint(body, prevent_cse=False, policy=checkpoint_policy)
