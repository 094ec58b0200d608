# SPDX-License-Identifier: Apache-2.0
"""Alternating measurements of several libraries, each in its own process."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .worker import Shape

DIRECTORY = pathlib.Path(__file__).parent
PEERS = ('covrl', 'tunix', 'trl')
# Environment variables that change the treatment of freed memory: `kept` for the
# next allocation, as covrl does by default, or `returned` to the system, as other
# libraries do (the value is glibc's default; covrl sets no options of the allocator
# if the environment has one).
ALLOCATORS = {
  'kept': {
    'GLIBC_TUNABLES': 'glibc.malloc.mmap_max=0:glibc.malloc.arena_max=1:'
    f'glibc.malloc.trim_threshold={1 << 34}'
  },
  'returned': {'MALLOC_PERTURB_': '0'},
}
VARIANTS = ('covrl:returned', 'tunix:kept', 'trl:kept')
SHAPES = {
  '4x4': Shape(prompts=4, group=4, prompt=32, response=64),
  '8x8': Shape(prompts=8, group=8, prompt=64, response=256),
  '32k': Shape(
    prompts=4,
    group=4,
    prompt=64,
    response=128,
    layers=4,
    width=256,
    vocabulary=32_000,
  ),
  'geometric': Shape(
    prompts=8, group=8, prompt=64, response=256, num_end_tokens=16
  ),
}
# Measurements of a stage, such as `step` or `rollout`, by name.
Answer = dict[str, float]


class PeerError(Exception):
  """A missing environment, or a process that ended, with the end of its output."""


class Peer:
  """A benchmarked library in a process of its own.

  Attributes:
    name: its name in `PEERS` or `VARIANTS`.
    versions: versions of its packages.
  """

  def __init__(self, name: str, shape: Shape, environments: str) -> None:
    """Starts the process and waits until it is ready.

    Args:
      name: a name in `PEERS` or `VARIANTS`.
      shape: sizes of policy and iteration.
      environments: folder of the peers' virtual environments; covrl runs in
        that of the driver.

    Raises:
      PeerError: it has no environment, or its process ended early.
    """
    library, _, allocator = name.partition(':')
    python = sys.executable
    if library != 'covrl':
      python = str(pathlib.Path(environments, library, 'bin', 'python'))
      if not os.path.exists(python):
        raise PeerError(
          f'--environments must name a folder made by install_peers.sh, got'
          f' {environments} without {python}'
        )
    self.name = name
    log, path = tempfile.mkstemp(suffix='.log')
    self._log = pathlib.Path(path)
    self._process = subprocess.Popen(
      [
        python,
        '-m',
        f'peers.{library}_peer',
        json.dumps(dataclasses.asdict(shape)),
      ],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=log,
      text=True,
      env=os.environ
      | ALLOCATORS.get(allocator, {})
      | {'PYTHONPATH': str(DIRECTORY.parent)},
    )
    os.close(log)
    self.versions: dict[str, str] = self._answer()['versions']

  def run(self, command: str) -> Answer:
    """Runs a stage, such as `step`; returns the peer's measurements."""
    assert self._process.stdin is not None
    print(command, file=self._process.stdin, flush=True)
    return self._answer()

  def close(self) -> None:
    """Ends the process."""
    assert self._process.stdin is not None
    self._process.stdin.close()
    try:
      self._process.wait(timeout=20)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._log.unlink(missing_ok=True)

  def _answer(self) -> dict[str, Any]:
    assert self._process.stdout is not None
    line = self._process.stdout.readline()
    if not line:
      raise PeerError(
        f'{self.name} cannot be measured: {self._log.read_text()[-2000:]}'
      )
    return json.loads(line)


def parser(description: str, shapes: Sequence[str]) -> argparse.ArgumentParser:
  """The options that the benchmarks of several libraries share."""
  parser = argparse.ArgumentParser(
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    '--environments',
    default='.',
    help="folder of the peers' environments, see install_peers.sh",
  )
  parser.add_argument(
    '--peer',
    nargs='+',
    choices=(*PEERS, *VARIANTS),
    default=[*PEERS],
    help='the first is the one that ratios are relative to; variants differ in'
    ' what the C library does with freed memory',
  )
  parser.add_argument('--shape', nargs='+', choices=SHAPES, default=[*shapes])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--warm-up', type=int, default=2)
  parser.add_argument('--json', help='file for all measurements')
  return parser


def measure(
  stage: str, shape: Shape, options: argparse.Namespace
) -> Iterator[tuple[str, dict[str, str], list[Answer]]]:
  """Runs a stage of each peer once per round, in rotating order.

  Yields:
    Each peer's name, versions and measurements.
  """
  peers: list[Peer] = []
  try:
    for name in options.peer:
      peers.append(Peer(name, shape, options.environments))
      for _ in range(options.warm_up):
        peers[-1].run(stage)
    answers: dict[str, list[Answer]] = {peer.name: [] for peer in peers}
    for round_number in range(options.rounds):
      first = round_number % len(peers)
      for peer in peers[first:] + peers[:first]:
        answers[peer.name].append(peer.run(stage))
  finally:
    for peer in peers:
      peer.close()
  for peer in peers:
    yield peer.name, peer.versions, answers[peer.name]


def report(
  stage: str, options: argparse.Namespace, parts: Sequence[str]
) -> None:
  """Measures all shapes; prints a table and writes all numbers as JSON.

  Args:
    stage: the stage to run.
    options: of `parser`.
    parts: parts of the stage, each with a column.
  """
  records: list[dict[str, Any]] = []
  load = os.getloadavg()[0]
  print(f'{os.cpu_count()} cores, load average {load:.1f} at the start\n')
  header = (
    'shape',
    'library',
    'seconds (quartiles)',
    *parts,
    'core seconds',
    'tokens',
    'ratio (quartiles)',
    'ratio of core seconds',
  )
  print('|', ' | '.join(header), '|')
  print('|---' * len(header) + '|')
  for name in options.shape:
    shape, baseline = SHAPES[name], None
    for peer, versions, answers in measure(stage, shape, options):
      values = {
        key: np.array([answer.get(key, 0.0) for answer in answers])
        for key in ('step', 'cpu_seconds', 'tokens', *parts)
      }
      baseline = baseline or values
      columns = (
        str(shape),
        ', '.join([*map(' '.join, versions.items()), *peer.split(':')[1:]]),
        _median_and_quartiles(values['step']),
        *(f'{np.median(values[key]):.3f}' for key in parts),
        f'{np.median(values["cpu_seconds"]):.2f}',
        f'{np.median(values["tokens"]):.0f}',
        _median_and_quartiles(values['step'] / baseline['step']),
        _median_and_quartiles(values['cpu_seconds'] / baseline['cpu_seconds']),
      )
      print('|', ' | '.join(columns), '|', flush=True)
      records.append(
        {'shape': name, 'peer': peer, 'versions': versions, 'rounds': answers}
      )
  print(f'\nload average {os.getloadavg()[0]:.1f} at the end')
  if options.json:
    pathlib.Path(options.json).write_text(json.dumps(records, indent=1))


def _median_and_quartiles(values: np.ndarray) -> str:
  """Median, and the quartiles around it."""
  low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
  return f'{median:.3g} ({low:.3g}–{high:.3g})'
