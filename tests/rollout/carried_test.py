# SPDX-License-Identifier: Apache-2.0
"""Refusal of carried responses, ids and groups that no call can have returned."""

from typing import Any

import jax
import numpy as np
import pytest
from rollout.engines import (
  END,
  GROUP,
  IDS,
  KEY,
  LENGTH,
  LIMIT,
  PARAMS,
  POLICY,
  PROMPTS,
  make_engine,
  make_prompts,
)

from covrl.rollout import GroupEngine, Samples, Sampling

ROWS = PROMPTS * GROUP
ENGINE = make_engine(slots=4)


def responses(lengths: Any) -> Any:
  """Responses of given lengths, of a token that is not an end token."""
  mask = np.arange(LIMIT) < np.broadcast_to(lengths, (ROWS,))[:, None]
  zeros: Any = np.zeros(mask.shape, np.float32)
  arrays: dict[str, Any] = {
    'response_tokens': np.where(mask, 7, 0).astype(np.int32),
    'response_mask': mask,
    'sampler_logprobs': zeros,
    'behaviour_logprobs': zeros,
    'truncated': np.zeros(ROWS, bool),
  }
  return Samples(**arrays)


def sample(carried=None, ids=IDS):
  prompts, mask = make_prompts()
  mask[0] = False
  return ENGINE.sample(
    PARAMS,
    prompts,
    mask,
    group_size=GROUP,
    key=KEY,
    sequence_ids=ids,
    sampling=Sampling.make(),
    carried=carried,
  )


HAS_PROMPT = np.arange(ROWS) >= GROUP
ONE_TOKEN_RESPONSES = responses(HAS_PROMPT)
TOKENS = ONE_TOKEN_RESPONSES.response_tokens


@pytest.mark.parametrize(
  ('carried', 'message'),
  [
    (
      jax.tree.map(lambda x: x[:1], ONE_TOKEN_RESPONSES),
      r'must be \[R, T\] = \(32, 10\), got',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(truncated=ONE_TOKEN_RESPONSES.truncated[:1]),
      'carried.truncated must be',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(
        response_mask=1 * ONE_TOKEN_RESPONSES.response_mask
      ),
      'array of bools',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(
        experts=np.zeros((ROWS, 16, 2, 2), np.uint8)
      ),
      'carried.experts must be None, got ndarray',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(response_tokens=TOKENS + 9),
      r'in \[0, 16\), got 16',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(response_tokens=TOKENS - 8),
      r'in \[0, 16\), got -1',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(
        sampler_logprobs=1 + ONE_TOKEN_RESPONSES.sampler_logprobs
      ),
      'carried.sampler_logprobs must be log-probabilities of at most 0, got 1.0',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(
        response_mask=ONE_TOKEN_RESPONSES.response_mask[:, ::-1]
      ),
      'must be padded on the right',
    ),
    (
      ONE_TOKEN_RESPONSES._replace(truncated=~ONE_TOKEN_RESPONSES.truncated),
      'truncated must have 10 tokens, got 0',
    ),
    (responses(1), 'got tokens in a row without one'),
    (
      ONE_TOKEN_RESPONSES._replace(
        response_mask=responses(2 * HAS_PROMPT).response_mask,
        response_tokens=np.full_like(TOKENS, END[0]),
      ),
      'got tokens after it',
    ),
    (
      responses(2 * (np.arange(ROWS) >= ROWS - 5)),
      'at most 4 unfinished responses of several tokens per shard.*got 5',
    ),
  ],
)
def test_carried_responses_that_no_call_returns_are_refused(carried, message):
  with pytest.raises((TypeError, ValueError), match=message):
    sample(carried)


def test_a_response_of_logits_that_are_not_finite_goes_on_with_its_nan():
  # So that its scoring fails, as that of a response which was not carried.
  logprobs = np.where(ONE_TOKEN_RESPONSES.response_mask, np.nan, 0)
  logprobs = logprobs.astype(np.float32)
  samples = sample(ONE_TOKEN_RESPONSES._replace(sampler_logprobs=logprobs))
  is_carried = np.asarray(ONE_TOKEN_RESPONSES.response_mask)
  assert is_carried.any()
  is_nan = np.isnan(np.asarray(samples.sampler_logprobs))
  np.testing.assert_array_equal(is_nan, is_carried)


def test_a_group_with_the_same_id_twice_is_refused():
  ids = IDS.copy()
  ids[:GROUP] = 5  # a row without a prompt
  ids[-1] = ids[-2]
  with pytest.raises(ValueError, match=f'each group, got {ids[-2]} twice'):
    sample(ids=ids)


PROMPT, MASK, GROUP_IDS = (
  np.full(LENGTH, 7, np.int32),
  np.ones(LENGTH, bool),
  IDS[:GROUP],
)


@pytest.fixture(scope='module')
def group_engine():
  """Returns an engine of groups after `begin`."""
  engine = GroupEngine(
    POLICY,
    end_ids=END,
    pad_id=0,
    prompts=2,
    prompt_width=LENGTH,
    max_response_length=LIMIT,
    group_size=GROUP,
  )
  engine.begin(PARAMS, key=KEY, sampling=Sampling.make())
  return engine


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    # These would be broadcast.
    (
      {'prompt': PROMPT[:1], 'prompt_mask': MASK[:1]},
      r'prompt must be \[W\] = \(6,\), got \(1,\)',
    ),
    ({'sequence_ids': IDS[:1]}, r'sequence_ids must be \[S\] = \(4,\), got'),
    ({'sequence_ids': np.full_like(GROUP_IDS, 3)}, 'each group, got 3 twice'),
    # The embedding of another token would be taken.
    ({'prompt': PROMPT + 9}, r'token ids in \[0, 16\), got 16'),
    ({'prompt_mask': MASK & (PROMPT.cumsum() < 9)}, 'padded on the left'),
  ],
)
def test_groups_that_would_be_broadcast_or_clamped_are_refused(
  group_engine, changes, message
):
  group = {'prompt': PROMPT, 'prompt_mask': MASK, 'sequence_ids': GROUP_IDS}
  with pytest.raises((TypeError, ValueError), match=message):
    group_engine.add(0, **{**group, **changes})
  assert not group_engine.is_busy
