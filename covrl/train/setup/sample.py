# SPDX-License-Identifier: Apache-2.0
"""Samples responses to a single prompt, within the positions of the model."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import PyTree

from covrl.data import (
  ListSource,
  Problem,
  PromptStream,
  Tokenizer,
  prompt_ids,
)
from covrl.pretrained import max_positions
from covrl.rollout import Sampling, SamplingEngine
from covrl.rollout.score import decode_responses


def sample_responses(
  engine: SamplingEngine,
  params: PyTree,
  tokenizer: Tokenizer,
  prompt: str,
  *,
  max_prompt_length: int,
  count: int,
  sampling: Sampling,
  seed: int,
) -> list[tuple[str, float]]:
  """Samples responses to one prompt.

  Args:
    engine: the policy's sampler.
    params: all parameters of the policy.
    tokenizer: the policy's tokenizer.
    prompt: the text of the prompt, chat template included.
    max_prompt_length: tokens of the prompt, at most.
    count: number of responses.
    sampling: temperature and truncation.
    seed: seed of the samples.

  Returns:
    Each response with its log-probability in nats.

  Raises:
    ValueError: `count` is below 1, the prompt is too long, or logits are not
      finite.
  """
  if count < 1:
    raise ValueError(f'--count must be at least 1, got {count}')
  stream = PromptStream(
    ListSource([_bare_problem(prompt)]),
    seed=0,
    prompts_per_draw=1,
    tokenizer=tokenizer,
    max_prompt_length=max_prompt_length,
    shuffle=False,
    prefetch=0,
  )
  batch = next(stream)
  samples = jax.device_get(
    engine.sample(
      params,
      batch.tokens,
      batch.mask,
      group_size=count,
      key=jax.random.key(seed),
      sequence_ids=np.arange(count, dtype=np.int32),
      sampling=sampling,
    )
  )
  if np.isnan(samples.sampler_logprobs).any():
    raise ValueError('the logits of a response must be finite, got nan')
  texts = decode_responses(tokenizer, samples)
  logprobs = samples.sampler_logprobs.sum(axis=1).tolist()
  return list(zip(texts, logprobs, strict=True))


def response_limit(
  directory: str,
  prompt: str,
  tokenizer: Tokenizer,
  max_length: int | None,
  default: int = 256,
) -> int:
  """Returns the maximal length of responses to one prompt.

  Args:
    directory: the pretrained model that the policy is or begins with; empty
      without any, which sets no limit.
    prompt: the text of the prompt.
    tokenizer: the policy's tokenizer.
    max_length: the value of --max_length; `None` unless given.
    default: the length if `max_length` is `None`, reduced to the positions that
      the prompt leaves.

  Raises:
    ValueError: `max_length` is out of range, or the prompt takes all positions.
  """
  if max_length is not None and max_length < 1:
    raise ValueError(f'--max_length must be at least 1, got {max_length}')
  positions = max_positions(directory) if directory else None
  if positions is None:
    return default if max_length is None else max_length
  length = len(prompt_ids(_bare_problem(prompt), tokenizer))
  if length >= positions:
    raise ValueError(
      f'the prompt must have fewer tokens than {directory} has positions'
      f' ({positions}), got {length}'
    )
  if max_length is not None and length + max_length > positions:
    raise ValueError(
      f'--max_length must be at most {positions - length}, the {positions}'
      f' positions of {directory} without the {length} tokens of the prompt, got'
      f' {max_length}'
    )
  return min(default, positions - length) if max_length is None else max_length


def _bare_problem(prompt: str) -> Problem:
  return Problem(prompt=prompt, reference=None, source='prompt')
