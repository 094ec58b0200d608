# SPDX-License-Identifier: Apache-2.0
"""Rewards of rollouts, and responses that are masked out of the loss."""

from typing import Any

import numpy as np

from covrl.rewards import Scores
from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.reward import Reward
from covrl.rollout.score import score_rollouts
from covrl.types import Rollouts


def test_responses_without_finite_logits_are_masked_and_named():
  mask = np.arange(3) > np.zeros((3, 1))
  logprobs = np.where(mask, -1, 0).astype(np.float32)
  logprobs[1, 2] = np.nan
  logprobs[2, 0] = np.nan  # not of the response
  integers, zeros = np.zeros((3, 3), np.int32), np.zeros(3, np.int32)
  fields: dict[str, Any] = {
    'tokens': integers,
    'positions': integers,
    'attention_mask': mask,
    'loss_mask': mask,
    'sampler_logprobs': logprobs,
    'behaviour_logprobs': logprobs,
    'sequence_ids': zeros,
    'group_ids': zeros,
    'source_ids': zeros,
    'policy_step': integers,
    'truncated': zeros > 0,
    'rewards': {},
  }
  rollouts = Rollouts(**fields)
  reward = Reward(name='right', score=lambda response, reference: 1.0)
  outcomes = [Outcome(1.0, Status.SCORED, '')] * 3
  scored = score_rollouts(rollouts, Scores((reward,), {'right': outcomes}))
  assert scored.rollouts.rewards['score'].tolist() == [1, 0, 1]
  assert scored.rollouts.loss_mask.any(axis=1).tolist() == [True, False, True]
  assert scored.failures == ['the logits of a response must be finite, got nan']
