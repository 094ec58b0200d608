# SPDX-License-Identifier: Apache-2.0
"""What is kept of a block for its backward pass, by name.

A block's input is always kept. Of a token, with model width D, query heads
times head width A, key heads times head width K and feed-forward width F, a
policy keeps so many numbers more:

  nothing     recomputes nothing: keeps all that the derivative reads
  cheap       all that a matrix product made: D + 2 A + 2 K + 2 F
  gate        the same but for the gate's product, D F of the 6 D F or so
  mlp         what attention made: D + 2 A + 2 K; the feed-forward is run again
  everything  0: a block is run again
  host        as cheap, in the host's memory, where a TPU has it fetched
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

ATTENTION = ('query', 'key', 'value', 'attended', 'mixed')

# What of a block is recomputed, to the names of what is kept.
REMAT: dict[str, tuple[str, ...] | None] = {
  'nothing': None,
  'cheap': (*ATTENTION, 'gate', 'up'),
  'gate': (*ATTENTION, 'up'),
  'mlp': ATTENTION,
  'everything': (),
  'host': (*ATTENTION, 'gate', 'up'),
}


def recomputed(body: Callable[..., Any], policy: str) -> Callable[..., Any]:
  """A scan's body whose derivative keeps what a policy says.

  Args:
    body: of a scan over blocks.
    policy: a name in `REMAT`.
  """
  names = REMAT[policy]
  if names is None:
    return body
  policies = jax.checkpoint_policies
  if policy == 'host':
    kept = policies.save_and_offload_only_these_names(
      names_which_can_be_saved=[],
      names_which_can_be_offloaded=list(names),
      offload_src='device',
      offload_dst='pinned_host',
    )
  else:
    kept = policies.save_only_these_names(*names)
  return jax.checkpoint(body, prevent_cse=False, policy=kept)
