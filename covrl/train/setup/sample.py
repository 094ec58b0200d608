# SPDX-License-Identifier: Apache-2.0
"""Samples responses to a single prompt, within the positions of the model."""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.config import RolloutConfig
from covrl.data import Problem, Tokenizer, prompt_ids, prompt_rows
from covrl.models import Policy
from covrl.pretrained import max_positions
from covrl.rollout import Caching, Request, RequestEngine
from covrl.rollout.sampling import check_sampling
from covrl.train.state_sharding import rollout_mesh

_SLOTS = 16  # responses that are decoded together, at most


def sample_responses(
  policy: Policy,
  params: PyTree,
  mesh: Mesh,
  tokenizer: Tokenizer,
  prompt: str,
  *,
  rollout: RolloutConfig,
  count: int,
  temperature: float,
  top_p: float,
  top_k: int,
  min_p: float,
  seed: int,
) -> list[tuple[str, float]]:
  """Samples responses to one prompt.

  Args:
    policy: the model.
    params: all parameters of the policy.
    mesh: the mesh of the parameters.
    tokenizer: the policy's tokenizer.
    prompt: the text of the prompt, chat template included.
    rollout: limits of prompt and responses, in tokens, and options of the engine.
    count: number of responses.
    temperature: sampling temperature.
    top_p: probability mass to sample from.
    top_k: number of tokens to sample from, 0 for all.
    min_p: least relative probability of a token, 0 for all.
    seed: seed of the samples.

  Returns:
    Each response with its log-probability under the policy in nats: at
    temperature 1 and before truncation, as of `covrl sample --file` and
    `covrl serve`.

  Raises:
    ValueError: `count` is below 1, an option is out of range, the prompt is too
      long, or logits are not finite.
  """
  if count < 1:
    raise ValueError(f'--count must be at least 1, got {count}')
  check_sampling(temperature, top_p, top_k, min_p)
  rows, mask = prompt_rows(
    [_bare_problem(prompt)], tokenizer, rollout.max_prompt_length
  )
  prompt_tokens = tuple(rows[mask].tolist())
  engine = RequestEngine(
    policy,
    params,
    rollout_mesh(mesh, rollout.tensor),
    end_ids=tokenizer.end_ids,
    pad_id=tokenizer.pad_id,
    max_prompt_length=len(prompt_tokens),
    max_response_length=rollout.max_response_length,
    slots=min(count, rollout.slots or _SLOTS),
    segment=rollout.segment,
    prompt_widths=(),
    # A cache of 8 bits changes log-probabilities.
    caching=Caching(chunk=rollout.prefill_chunk),
  )
  responses: dict[int, tuple[list[int], list[float]]] = {}
  for index in range(count):
    request = Request(
      prompt=prompt_tokens,
      max_tokens=rollout.max_response_length,
      seed=seed,
      sequence_id=index,
      temperature=temperature,
      top_p=top_p,
      top_k=top_k,
      min_p=min_p,
    )
    responses[engine.submit(request)] = [], []
  while engine.num_waiting or engine.num_running:
    for number, new in engine.step().items():
      tokens, logprobs = responses[number]
      tokens += new.tokens
      logprobs += new.policy_logprobs
  if any(np.isnan(logprobs).any() for _, logprobs in responses.values()):
    raise ValueError('the logits of a response must be finite, got nan')
  return [
    (tokenizer.decode(tokens), sum(logprobs))
    for tokens, logprobs in responses.values()
  ]


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
