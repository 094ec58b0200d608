# SPDX-License-Identifier: Apache-2.0
"""A small policy, its engine and its tokenizer, shared by a file's tests."""

import pathlib

import jax
import pytest

from covrl.models import Policy, tiny
from covrl.pretrained import load_tokenizer
from covrl.rollout import RequestEngine

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'tokenizers'
TOKENIZER = load_tokenizer(GOLDEN / 'bytes')
POLICY = Policy(tiny(TOKENIZER.vocab_size))


@pytest.fixture(scope='module')
def engine():
  """An engine of four slots with a random policy."""
  return RequestEngine(
    POLICY,
    POLICY.init(jax.random.key(0)),
    end_ids=TOKENIZER.end_ids,
    pad_id=TOKENIZER.pad_id,
    max_prompt_length=16,
    max_response_length=24,
    slots=4,
    segment=5,
  )
