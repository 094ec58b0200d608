# SPDX-License-Identifier: Apache-2.0
"""Tests of mazes: drawn grids, shortest paths, explorer's walks."""

import collections
import dataclasses
import itertools
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covrl.config import ConfigError, MazeConfig
from covrl.data import (
  ExploredMazeSource,
  MazeSource,
  held_out_mazes,
  maze_tokenizer,
  solve_maze,
)
from covrl.data.generated.mazes import (
  Maze,
  cell_at,
  cell_name,
  distances,
  explorer_walk,
  maze_of,
  maze_problem,
  random_maze,
  shortest_path,
)

CONFIG = MazeConfig(held_out=50, size=1000)
# A grid with so few mazes that most draws are held-out ones.
CROWDED = MazeConfig(
  side=2, min_walls=1, max_walls=1, min_distance=1, max_steps=2, held_out=12
)
EACH_SOURCE_CLASS = pytest.mark.parametrize(
  'source_class', [MazeSource, ExploredMazeSource]
)


@st.composite
def _mazes(draw):
  """Strategy for mazes whose goal may be out of reach."""
  side = draw(st.integers(2, 5))
  cells = list(itertools.product(range(side), repeat=2))
  start, goal = draw(st.lists(st.sampled_from(cells), min_size=2, max_size=2))
  walls = draw(st.sets(st.sampled_from(cells))) - {start, goal}
  return Maze(side, frozenset(walls), start, goal)


def relaxed_distances(maze, origin):
  """Distances by Bellman and Ford's algorithm."""
  cells = set(itertools.product(range(maze.side), repeat=2)) - maze.walls
  steps = {origin: 0}
  for _ in cells:
    for (x, y), (u, v) in itertools.product(cells, repeat=2):
      if (x, y) in steps and abs(x - u) + abs(y - v) == 1:
        steps[u, v] = min(steps.get((u, v), 99), steps[x, y] + 1)
  return steps


@EACH_SOURCE_CLASS
def test_problems_depend_on_seed_and_index_alone(source_class):
  source, unpickled = (
    source_class(CONFIG),
    pickle.loads(pickle.dumps(source_class(CONFIG))),
  )
  assert [source[n] for n in (9, 3)] == [unpickled[n] for n in (3, 9)][::-1]
  other = source_class(dataclasses.replace(CONFIG, seed=1))
  assert [source[n] for n in range(8)] != [other[n] for n in range(8)]
  assert source.fingerprint == unpickled.fingerprint != other.fingerprint


def test_mazes_with_and_without_walks_are_different_ones():
  mazes, explored = MazeSource(CONFIG), ExploredMazeSource(CONFIG)
  assert mazes.fingerprint != explored.fingerprint
  assert mazes[0].reference != explored[0].reference
  assert mazes[0].solution is None


@EACH_SOURCE_CLASS
def test_mazes_are_within_the_bounds(source_class):
  source = source_class(CONFIG)
  walls, lengths = collections.Counter(), collections.Counter()
  for index in range(400):
    reference = source[index].reference
    names = {*reference['walls'], reference['start'], reference['goal']}
    assert len(names) == len(reference['walls']) + 2
    assert all(0 <= n < 5 for name in names for n in cell_at(name))
    walls[len(reference['walls'])] += 1
    lengths[len((solve_maze(source[index]) or '').split())] += 1
  assert set(walls) == {4, 5, 6, 7, 8}
  assert set(lengths) == {5, 6, 7, 8}


def test_prompts_name_start_goal_and_walls():
  maze = Maze(5, frozenset({(3, 0), (1, 2)}), (0, 0), (4, 4))
  problem = maze_problem(maze, 8)
  assert maze_of(problem) == maze
  assert problem.prompt == 'from a1 to e5 walls b3 d1 :'
  assert problem.reference == {
    'side': 5,
    'walls': ['b3', 'd1'],
    'start': 'a1',
    'goal': 'e5',
    'max_steps': 8,
  }


def test_prompts_and_walks_are_in_the_vocabulary():
  tokenizer, source = maze_tokenizer(CONFIG), ExploredMazeSource(CONFIG)
  for index in range(100):
    for text in (source[index].prompt, source[index].solution or ''):
      ids = tokenizer.encode(text)
      assert tokenizer.decode(ids) == text
      assert len(ids) == len(text.split())


@given(_mazes())
@settings(max_examples=50, deadline=None)
def test_distances_agree_with_another_algorithm(maze):
  assert distances(maze, maze.start) == relaxed_distances(maze, maze.start)


@given(_mazes())
@settings(max_examples=100, deadline=None)
def test_shortest_paths_have_the_distance_as_length(maze):
  steps, path = distances(maze, maze.start), shortest_path(maze)
  if maze.goal not in steps:
    assert path is None
    return
  assert path is not None
  assert len(path) == steps[maze.goal]
  for before, after in itertools.pairwise([maze.start, *path]):
    assert after in maze.free_neighbours(before)
  assert [maze.start, *path][-1] == maze.goal


@given(_mazes(), st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_long_walks_reach_the_goal_by_free_cells(maze, seed):
  if maze.goal not in distances(maze, maze.start):
    return
  # Each cell is entered once, and left at most once on the way back.
  walk = explorer_walk(random.Random(seed), maze, 2 * maze.side**2)
  cells = [maze.start, *walk]
  assert cells[-1] == maze.goal
  assert maze.goal not in cells[:-1]
  for before, after in itertools.pairwise(cells):
    assert after in maze.free_neighbours(before)
  short = explorer_walk(random.Random(seed), maze, 3)
  assert short == walk[:3]


def test_the_explorer_prefers_new_cells_and_draws_them_uniformly():
  # A dead end to the right of the start, and two ways at a crossing.
  maze = Maze(3, frozenset({(1, 0)}), (1, 1), (0, 0))
  firsts = collections.Counter(
    explorer_walk(random.Random(seed), maze, 1)[0] for seed in range(900)
  )
  assert set(firsts) == {(0, 1), (2, 1), (1, 2)}
  assert all(240 < count < 360 for count in firsts.values())
  for seed in range(50):
    walk = explorer_walk(random.Random(seed), maze, 20)
    for n, cell in enumerate(walk[:-1]):
      visited = {maze.start, *walk[: n + 1]}
      new = set(maze.free_neighbours(cell)) - visited
      assert not new or walk[n + 1] in new


def test_less_than_a_third_of_the_walks_reach_the_goal():
  source = ExploredMazeSource(MazeConfig(held_out=0))
  problems = [source[n] for n in range(1000)]
  num_reached = sum(
    (problem.solution or '').split()[-1] == problem.reference['goal']
    for problem in problems
  )
  assert 150 < num_reached < 330


def test_held_out_mazes_are_distinct_and_the_same_for_every_seed():
  problems = held_out_mazes(CONFIG)
  assert len({problem.prompt for problem in problems}) == CONFIG.held_out
  assert problems == held_out_mazes(dataclasses.replace(CONFIG, seed=5, size=7))
  assert all(problem.solution is None for problem in problems)


@EACH_SOURCE_CLASS
def test_training_mazes_exclude_held_out_ones(source_class):
  drawn = {source_class(CROWDED)[n].prompt for n in range(60)}
  held_out = {problem.prompt for problem in held_out_mazes(CROWDED)}
  assert drawn
  assert not drawn & held_out
  without_held_out = source_class(dataclasses.replace(CROWDED, held_out=0))
  assert {without_held_out[n].prompt for n in range(60)} & held_out


def test_names_of_cells_round_trip():
  for column, row in itertools.product(range(26), range(26)):
    assert cell_at(cell_name((column, row))) == (column, row)
  assert cell_name((25, 25)) == 'z26'


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'side': 1}, '2 <= side <= 26, got 1'),
    ({'side': 27}, '2 <= side <= 26, got 27'),
    ({'min_walls': 9}, 'got min_walls=9 and max_walls=8'),
    ({'max_walls': 24}, 'max_walls <= 23, the cells besides start and goal'),
    ({'min_distance': 9}, 'got min_distance=9 and max_steps=8'),
    (
      {'side': 3, 'max_walls': 7, 'max_steps': 9},
      'min_distance < 5, the most cells that are free, got 5',
    ),
    ({'held_out': -1}, 'got held_out=-1'),
    ({'size': 0}, 'got held_out=1024 and size=0'),
  ],
)
def test_refuses_impossible_bounds(fields, message):
  with pytest.raises(ConfigError, match=message):
    MazeConfig(**fields)


def test_refuses_bounds_with_too_few_mazes():
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    held_out_mazes(dataclasses.replace(CROWDED, held_out=1000))
  # No path in a grid of this size is as long.
  unreachable = MazeConfig(
    side=2, min_walls=0, max_walls=0, min_distance=3, max_steps=3, held_out=0
  )
  with pytest.raises(ValueError, match='must allow more distinct problems'):
    random_maze(random.Random(0), unreachable)


@EACH_SOURCE_CLASS
def test_refuses_indices_out_of_range(source_class):
  source = source_class(CONFIG)
  for index in (-1, len(source)):
    with pytest.raises(IndexError, match=r'must lie in \[0, 1000\), got'):
      source[index]
