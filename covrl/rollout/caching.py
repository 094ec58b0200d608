# SPDX-License-Identifier: Apache-2.0
"""Options of the KV cache and of the prefill that fills it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from covrl.array_checks import check_integer
from covrl.config import RolloutConfig
from covrl.models.cache import DecodeCache, PromptCache
from covrl.models.policy import Policy
from covrl.rollout.samples import count_positions


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caching:
  """Options of the KV cache and of prefill.

  Attributes:
    chunk: columns of prompts that are processed together, which bounds the
      memory of activations; 0 for all.
    int8: whether keys and values are stored as integers of 8 bits. The sampler's
      log-probabilities are then those of a model that reads such a cache, and
      differ from the trainer's.

  >>> Caching(chunk=-1)
  Traceback (most recent call last):
  ValueError: chunk must be at least 0, got -1
  """

  chunk: int = 0
  int8: bool = False

  @classmethod
  def of(cls, rollout: RolloutConfig) -> Caching:
    """The options of a run."""
    return cls(chunk=rollout.prefill_chunk, int8=rollout.cache_dtype == 'int8')

  def __post_init__(self) -> None:
    check_integer('chunk', self.chunk, 0)
    if not isinstance(self.int8, bool):
      raise TypeError(f'int8 must be True or False, got {self.int8!r:.80}')

  def prefill(
    self,
    policy: Policy,
    params: PyTree,
    tokens: Int[Array, 'P T'],
    mask: Bool[Array, 'P T'],
    *,
    record_experts: bool = False,
  ) -> tuple[Float[Array, 'P D'], PromptCache]:
    """Processes prompts that are padded on the left; see `Policy.prefill`."""
    hidden, cache = policy.prefill(
      params,
      tokens,
      count_positions(mask),
      mask,
      chunk=self.chunk,
      record_experts=record_experts,
    )
    return hidden, cache.as_int8() if self.int8 else cache

  def empty_prompts(
    self, policy: Policy, params: PyTree, shape: tuple[int, int]
  ) -> PromptCache:
    """Creates the cache of empty prompts.

    Args:
      policy: the model.
      params: its parameters, or their shapes.
      shape: number of prompts and of columns.
    """
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    _, cache = jax.eval_shape(
      lambda params, x: self.prefill(policy, params, x, x > 0), params, tokens
    )
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), cache)

  def empty_cache(
    self, policy: Policy, prompts: PromptCache, slots: int, size: int
  ) -> DecodeCache:
    """Creates the cache of empty responses, each to the first prompt.

    Args:
      policy: the model.
      prompts: cache of the prompts.
      slots: number of rows.
      size: tokens of a response in the cache, at most.
    """
    prompt = jnp.zeros(slots, jnp.int32)
    return DecodeCache.empty(prompts, prompt, size, policy.config.windows)


EXACT_CACHING = Caching()
"""The default: keys and values in the model's type, and prefill of whole prompts.

The sampler's log-probabilities are then those of the trainer.
"""
