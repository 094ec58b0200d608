# SPDX-License-Identifier: Apache-2.0
"""Tests of the reward of mazes."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.config import MazeConfig
from covrl.data import ExploredMazeSource, MazeSource, solve_maze
from covrl.rewards import MAZE_EXAMPLE, RewardPool, Status, score_maze

# a b c d
# S # . .   1
# . . . #   2
# # . # G   3
# . . . .   4
REFERENCE = {
  'side': 4,
  'walls': ['b1', 'd2', 'a3', 'c3'],
  'start': 'a1',
  'goal': 'd3',
  'max_steps': 9,
}


@pytest.mark.parametrize(
  'response',
  [
    'a2 b2 b3 b4 c4 d4 d3',
    '  a2  b2\tb3 b4 c4 d4 d3 ',
    # A detour, and back over the start.
    'a2 b2 c2 b2 b3 b4 c4 d4 d3',
    'a2 a1 a2 b2 b3 b4 c4 d4 d3',
    # Through the goal and back.
    'a2 b2 b3 b4 c4 d4 d3 d4 d3',
  ],
)
def test_paths_score_one(response):
  assert score_maze(response, REFERENCE) == 1.0


@pytest.mark.parametrize(
  'response',
  [
    '',
    ' ',
    # Not at the goal, or not from the start.
    'a2 b2 b3 b4 c4 d4',
    'd3',
    'd4 d3',
    'a1 a2 b2 b3 b4 c4 d4 d3',
    'a2 b2 b3 b4 c4 d4 d3 d4',
    # Through a wall, over a corner, two cells at once, standing still.
    'a2 b2 c2 c3 d3',
    'a2 b2 c2 d2 d3',
    'b2 b3 b4 c4 d4 d3',
    'a2 b2 b4 c4 d4 d3',
    'a2 a2 b2 b3 b4 c4 d4 d3',
    # Out of the grid.
    'a0 a1 a2 b2 b3 b4 c4 d4 d3',
    'a2 b2 b3 b4 b5 c5 c4 d4 d3',
    'a2 b2 b3 b4 c4 d4 e4 e3 d3',
    # More than nine steps.
    'a2 a1 a2 a1 a2 b2 b3 b4 c4 d4 d3',
    'a2 ' * 10_000,
    # Other text.
    'a2, b2, b3, b4, c4, d4, d3',
    'a2 b2 b3 b4 c4 d4 d3 .',
    'A2 b2 b3 b4 c4 d4 d3',
    'a2 b2 b3 b4 c4 d4 d03',
    'a2 b2 b3 b4 c4 d4 d٣',
    'a2b2b3b4c4d4d3',
    'from a1 to d3 walls b1 :',
    '⁇',
  ],
)
def test_other_responses_score_zero(response):
  assert score_maze(response, REFERENCE) == 0.0


def test_a_path_may_have_all_allowed_steps_and_no_more():
  path = 'a2 b2 b3 b4 c4 d4 d3'
  assert score_maze(path, {**REFERENCE, 'max_steps': 7}) == 1.0
  assert score_maze(path, {**REFERENCE, 'max_steps': 6}) == 0.0


def test_rows_may_have_two_digits():
  reference = {
    'side': 11,
    'walls': [],
    'start': 'k9',
    'goal': 'k11',
    'max_steps': 2,
  }
  assert score_maze('k10 k11', reference) == 1.0
  assert score_maze('k11 k11', reference) == 0.0


def are_adjacent(before, after):
  columns = abs(ord(before[0]) - ord(after[0]))
  return {columns, abs(int(before[1]) - int(after[1]))} == {0, 1}


@given(
  st.lists(
    st.tuples(st.sampled_from('abcd'), st.sampled_from('1234')).map(''.join),
    min_size=1,
    max_size=9,
  )
)
@settings(max_examples=300, deadline=None)
def test_any_cells_score_one_exactly_if_they_are_a_path(cells):
  is_path = (
    all(itertools.starmap(are_adjacent, itertools.pairwise(['a1', *cells])))
    and not set(cells) & set(REFERENCE['walls'])
    and cells[-1] == 'd3'
  )
  assert score_maze(' '.join(cells), REFERENCE) == float(is_path)


@given(st.integers(0, 10_000), st.data())
@settings(max_examples=100, deadline=None)
def test_shortest_paths_score_one_and_changed_ones_zero(index, data):
  problem = MazeSource(MazeConfig(held_out=0))[index]
  path = (solve_maze(problem) or '').split()
  assert score_maze(' '.join(path), problem.reference) == 1.0
  assert score_maze(' '.join(path[:-1]), problem.reference) == 0.0
  # Without one of its cells a shortest path has a gap or ends too early.
  position = data.draw(st.integers(0, len(path) - 1))
  shortened = path[:position] + path[position + 1 :]
  assert score_maze(' '.join(shortened), problem.reference) == 0.0
  wall = {**problem.reference, 'walls': [path[position]]}
  assert score_maze(' '.join(path), wall) == 0.0


@given(st.text('abcde12345 ', max_size=40) | st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_never_raises(text):
  assert score_maze(text, REFERENCE) in (0.0, 1.0)


def test_walks_score_one_exactly_if_they_end_at_the_goal():
  source = ExploredMazeSource(MazeConfig(held_out=0))
  scores = set()
  for index in range(300):
    problem = source[index]
    walk = problem.solution or ''
    is_at_goal = walk.split()[-1] == problem.reference['goal']
    scores.add(score_maze(walk, problem.reference))
    assert score_maze(walk, problem.reference) == float(is_at_goal)
  assert scores == {0.0, 1.0}


def test_workers_score_paths_without_jax():
  right_response, reference = MAZE_EXAMPLE
  with RewardPool(score_maze, example=MAZE_EXAMPLE) as pool:
    responses = [right_response, 'b2', right_response]
    outcomes = pool.submit(responses, [reference] * 3).result()
  assert [outcome.score for outcome in outcomes] == [1.0, 0.0, 1.0]
  assert {outcome.status for outcome in outcomes} == {Status.SCORED}
