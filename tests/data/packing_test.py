# SPDX-License-Identifier: Apache-2.0
"""Tests of token rows for supervised training and of packing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covrl.data import (
  JsonTokenizer,
  Problem,
  TokenRows,
  pack_if_fit,
  pack_rows,
  prompt_rows,
  token_rows,
  train_sentencepiece,
)

TOKENIZER = train_sentencepiece(['1 2 3 4 5 6 7 8 9 = :'])


def problem(prompt, solution):
  return Problem(
    prompt=prompt, reference=None, source='sums', solution=solution
  )


def text(ids):
  """Text of token ids."""
  return TOKENIZER.decode(np.asarray(ids).tolist())


def sequences(rows):
  """Tokens, targets, mask and positions of every sequence, in order."""
  result = []
  for row, segments in enumerate(rows.segment_ids):
    for segment in range(1, segments.max(initial=0) + 1):
      columns = segments == segment
      result.append(
        tuple(
          getattr(rows, name)[row, columns].tolist()
          for name in ('tokens', 'targets', 'loss_mask', 'positions')
        )
      )
  return result


def test_loss_mask_covers_the_response_and_its_end():
  rows = token_rows(
    [problem('1 2 :', '3 4'), problem('5 :', '6')], TOKENIZER, 8
  )
  end_id = TOKENIZER.end_ids[0]
  assert text(rows.tokens[0]) == '1 2 : 3 4'
  assert rows.targets[0, rows.loss_mask[0]].tolist() == [
    *TOKENIZER.encode('3 4'),
    end_id,
  ]
  assert rows.targets[1, rows.loss_mask[1]].tolist() == [
    *TOKENIZER.encode('6'),
    end_id,
  ]
  # Targets are the next tokens.
  is_token = rows.segment_ids[:, 1:] > 0
  assert (rows.targets[:, :-1] == rows.tokens[:, 1:])[is_token].all()
  assert rows.segment_ids.sum(1).tolist() == [6, 4]
  assert not rows.loss_mask[rows.segment_ids == 0].any()
  assert rows.positions[0].tolist() == [0, 1, 2, 3, 4, 5, 0, 0]


def test_prompt_tokens_are_those_of_sampling():
  one = problem('1 2 :', '3 4')
  prompt, mask = prompt_rows([one], TOKENIZER, 8)
  rows = token_rows([one], TOKENIZER, 8)
  length = int(mask.sum())
  assert prompt[0, -length:].tolist() == rows.tokens[0, :length].tolist()
  # The last prompt token predicts the first of the response.
  assert not rows.loss_mask[0, : length - 1].any()
  assert rows.loss_mask[0, length - 1]


def test_prompts_need_a_token_if_the_tokenizer_has_no_bos_token():
  file = (
    b'{"model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "e": 2},'
    b' "unk_token": "a"}, "pre_tokenizer": {"type": "WhitespaceSplit"}}'
  )
  tokenizer = JsonTokenizer(file, end_tokens=['e'])
  rows = token_rows([problem('a b', 'b')], tokenizer, 3)
  assert rows.tokens.tolist() == [[0, 1, 1]]
  assert rows.targets.tolist() == [[1, 1, 2]]
  assert rows.loss_mask.tolist() == [[False, True, True]]
  # Nothing would precede the response.
  for rows_of in (token_rows, prompt_rows):
    with pytest.raises(ValueError, match="at least one token, got none in ''"):
      rows_of([problem('', 'b')], tokenizer, 3)


def test_refuses_rows_that_contradict_their_segments():
  rows = random_rows([2, 3], 4)
  for changes, message in (
    ({'segment_ids': -rows.segment_ids}, 'integers of at least 0, got int32'),
    ({'segment_ids': rows.segment_ids * 1.0}, 'at least 0, got float64'),
    ({'tokens': rows.tokens[:1]}, r'= \(2, 4\), .* got \(1, 4\)'),
  ):
    with pytest.raises(ValueError, match=message):
      pack_rows(dataclasses.replace(rows, **changes), length=8)


def test_refuses_missing_and_long_solutions():
  with pytest.raises(ValueError, match="'1 :' of source 'sums' without one"):
    token_rows([problem('1 :', None)], TOKENIZER, 8)
  with pytest.raises(
    ValueError, match="must have at most 4 tokens, got 5 in '1 2 :'"
  ):
    token_rows([problem('1 2 :', '3')], TOKENIZER, 4)
  assert token_rows([problem('1 2 :', '3')], TOKENIZER, 5).tokens.shape == (
    1,
    5,
  )


def random_rows(lengths, width, seed=0):
  """One sequence per row, of these lengths, with random tokens."""
  rng = np.random.default_rng(seed)
  shape = len(lengths), width
  is_token = np.arange(width) < np.array(lengths, int)[:, None]
  return TokenRows(
    tokens=np.where(is_token, rng.integers(1, 99, shape), 0),
    targets=np.where(is_token, rng.integers(1, 99, shape), 0),
    loss_mask=is_token & (rng.random(shape) < 0.5),
    positions=np.where(is_token, np.arange(width), 0),
    segment_ids=is_token.astype(np.int32),
  )


@given(
  st.lists(st.integers(1, 9), min_size=1, max_size=12),
  st.integers(9, 20),
  st.integers(0, 100),
)
def test_packing_keeps_every_sequence(lengths, length, seed):
  rows = random_rows(lengths, 9, seed)
  packed = pack_rows(rows, length=length)
  assert sorted(sequences(packed)) == sorted(sequences(rows))
  assert packed.tokens.shape[1] == length
  assert len(packed.tokens) <= len(lengths)
  is_padding = packed.segment_ids == 0
  assert not packed.tokens[is_padding].any()
  assert not packed.loss_mask[is_padding].any()
  # First fit: no later row holds a sequence that an earlier one had room for.
  num_free = is_padding.sum(1)
  for row in range(1, len(num_free)):
    first_length = (packed.segment_ids[row] == 1).sum()
    assert (num_free[:row] < first_length).all()


def test_packs_rows_in_order():
  packed = pack_rows(random_rows([3, 4, 2, 1], 6), length=5)
  assert packed.segment_ids.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 1, 2]]
  assert packed.positions.tolist() == [[0, 1, 2, 0, 1], [0, 1, 2, 3, 0]]


def test_packs_packed_and_left_padded_rows():
  rows = random_rows([3, 4, 2, 1], 6)
  packed = pack_rows(rows, length=5)
  again = pack_rows(packed, length=10)
  assert sequences(again) == sequences(packed)
  assert len(again.tokens) == 1
  left_padded = TokenRows(
    **{
      field.name: np.roll(getattr(rows, field.name), 2, axis=1)
      for field in dataclasses.fields(rows)
    }
  )
  assert sequences(pack_rows(left_padded, length=6)) == sequences(
    pack_rows(rows, length=6)
  )


def test_packs_any_dataclass_of_rows():
  @dataclasses.dataclass(frozen=True)
  class Weighted:
    weights: np.ndarray
    segment_ids: np.ndarray

  rows = Weighted(
    np.array([[0.5, 0.0], [0.25, 0.75]], np.float64),
    np.array([[1, 0], [1, 1]], np.int32),
  )
  packed = pack_rows(rows, length=3, count=2)
  assert packed.weights.tolist() == [[0.5, 0.25, 0.75], [0, 0, 0]]
  assert packed.segment_ids.tolist() == [[1, 2, 2], [0, 0, 0]]
  assert packed.weights.dtype == np.float64
  assert packed.segment_ids.dtype == np.int32


def test_refuses_sequences_that_do_not_fit():
  rows = random_rows([3, 4, 2, 1], 6)
  with pytest.raises(
    ValueError,
    match='count must be at least 2 for 4 sequences in rows of 5 tokens, got 1',
  ):
    pack_rows(rows, length=5, count=1)
  with pytest.raises(ValueError, match='must have at most 3 tokens, got 4'):
    pack_rows(rows, length=3)


@given(
  st.lists(st.integers(1, 9), min_size=1, max_size=12),
  st.integers(1, 12),
  st.integers(0, 100),
)
def test_packs_into_a_given_number_of_rows_or_returns_them_unchanged(
  lengths, count, seed
):
  rows = random_rows(lengths, 9, seed)
  packed = pack_if_fit(rows, length=9, count=count)
  if packed is rows:
    # First fit leaves at most one row less than half full.
    assert sum(lengths) > 9 * count / 2
  else:
    assert packed.tokens.shape == (count, 9)
    assert sorted(sequences(packed)) == sorted(sequences(rows))


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  'ids', [[1.5], [True], ['1'], np.array([1]), '12', None, [-1], [10**6]]
)
def test_refuses_ids_that_are_not_a_list_of_tokens(ids, monkeypatch):
  monkeypatch.setattr(type(TOKENIZER), 'encode', lambda self, text: ids)
  with pytest.raises((TypeError, ValueError), match='token ids'):
    prompt_rows([problem('1', '2')], TOKENIZER, 8)
