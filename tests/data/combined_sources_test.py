# SPDX-License-Identifier: Apache-2.0
"""Problem sources that are concatenated, mixed and restricted to a subset."""

from typing import Any

import numpy as np
import pytest

from covrl.data import (
  ConcatenatedSource,
  FormattedSource,
  ListSource,
  MixtureSource,
  Problem,
  PromptFormat,
  SubsetSource,
)


def list_source(name, count=3):
  """A source of numbered problems with a name."""
  return ListSource(
    [
      Problem(prompt=f'{name}{n}', reference=n, source=name)
      for n in range(count)
    ]
  )


def test_concatenated_sources_keep_their_names():
  source = ConcatenatedSource([list_source('a'), list_source('b')])
  prompts = [source[n].prompt for n in range(len(source))]
  assert prompts == ['a0', 'a1', 'a2', 'b0', 'b1', 'b2']
  assert source.names == ('a', 'b')
  for index in (-1, 6):
    with pytest.raises(IndexError, match=r'must lie in \[0, 6\)'):
      source[index]


def test_refuses_entries_that_are_not_problems():
  entry: Any = {'prompt': '1 + 1', 'reference': '2'}
  with pytest.raises(TypeError, match=r'must hold Problem objects, got \{'):
    ListSource([entry])


@pytest.mark.usefixtures('no_annotation_checks')
@pytest.mark.parametrize(
  ('indices', 'message'),
  [
    (np.array([True, False, True]), 'indices must be a vector of integers'),
    (np.array([0.5]), 'indices must be a vector of integers'),
    (np.array([0, 3]), r'indices must lie in \[0, 3\), .* got 0 to 3'),
    (np.array([-1]), r'indices must lie in \[0, 3\), .* got -1 to -1'),
    ([True, False], 'indices must be a vector of integers, got bool'),
  ],
)
def test_refuses_invalid_indices(indices, message):
  with pytest.raises((TypeError, ValueError), match=message):
    SubsetSource(list_source('a', 3), indices)


def test_subsets_hold_the_problems_of_their_indices():
  subset = SubsetSource(list_source('a', 5), np.array([4, 1]))
  assert [subset[n].prompt for n in range(len(subset))] == ['a4', 'a1']
  assert subset.names == ('a',)


@pytest.mark.parametrize(
  'weights', [[1.0], [1.0, 0.0], [1.0, -2.0], [1.0, float('inf')]]
)
def test_mixtures_need_one_positive_weight_per_source(weights):
  with pytest.raises(ValueError, match='one positive number for each of 2'):
    MixtureSource([list_source('a'), list_source('b')], weights)


def test_mixtures_within_other_sources_are_refused():
  """Streams would ignore their weights."""
  mixture = MixtureSource([list_source('a'), list_source('b')], [9.0, 1.0])
  for wrap in (
    lambda: SubsetSource(mixture, np.array([0])),
    lambda: ConcatenatedSource([mixture]),
    lambda: MixtureSource([mixture], [1.0]),
    lambda: FormattedSource(mixture, PromptFormat()),
  ):
    with pytest.raises(
      TypeError, match='must be the outermost source, got one'
    ):
      wrap()
  with pytest.raises(ValueError, match='one positive number for each of 0'):
    MixtureSource([], [])
