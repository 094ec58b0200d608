# SPDX-License-Identifier: Apache-2.0
"""Prompts that the sampling engine refuses."""

import numpy as np
import pytest
from rollout.engines import ENGINE, KEY, PARAMS, VOCAB

from covrl.rollout import Sampling


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('tokens', 'mask', 'message'),
  [
    ([[1, VOCAB]], [[True, True]], rf'in \[0, {VOCAB}\), got {VOCAB}'),
    ([[1, -1]], [[True, True]], rf'in \[0, {VOCAB}\), got -1'),
    (
      [[1, 2]],
      [[True, False]],
      'padded on the left, got padding after a token',
    ),
    ([[1, 2]], [[1, 1]], 'prompt_mask must be an array of bools'),
    ([[1.0, 2.0]], [[True, True]], 'prompts must be an array of integers'),
    (
      np.zeros((0, 2), int),
      np.zeros((0, 2), bool),
      'prompts must not be an empty array, got',
    ),
  ],
)
def test_refuses_prompts_that_are_not_token_ids(tokens, mask, message):
  tokens, mask = np.asarray(tokens), np.asarray(mask)
  with pytest.raises((TypeError, ValueError), match=message):
    ENGINE.sample(
      PARAMS,
      tokens,
      mask,
      group_size=1,
      key=KEY,
      sequence_ids=np.arange(len(tokens)),
      sampling=Sampling.make(),
    )
