# SPDX-License-Identifier: Apache-2.0
"""Samples responses to a file of prompts: `covrl sample --file`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from covrl.cli.policies import is_run, prompt_format

if TYPE_CHECKING:
  from etils import epath

# Tokens of a response of a pretrained model, as for a single prompt.
_MODEL_LENGTHS = (2048, 256)
_SLOTS = 16


def run(arguments: argparse.Namespace) -> None:
  """Writes the responses, a line per line of the file.

  Raises:
    ValueError: an option is invalid, or lines were refused; then responses to
      the others were written.
  """
  from covrl import storage
  from covrl.rollout.sampling import check_sampling
  from covrl.run.progress import Progress
  from covrl.serve import load_model, load_run, sample_lines

  file = storage.as_path(arguments.file)
  if not file.is_file():
    raise ValueError(f'--file must be a file, got {arguments.file}')
  check_sampling(
    arguments.temperature, arguments.top_p, arguments.top_k, arguments.min_p
  )
  if arguments.seed < 0:
    raise ValueError(f'--seed must be at least 0, got {arguments.seed}')
  output = None
  if arguments.output is not None:
    output = storage.as_path(arguments.output)
    if output.exists():
      raise ValueError(
        f'--output must be a new file, {arguments.output} exists'
      )
  with Progress() as progress:
    progress.stage('loading the policy')
    lengths = arguments.max_prompt_length, arguments.max_length
    if is_run(arguments.policy):
      served = load_run(arguments.policy, lengths, trust=arguments.trust)
    else:
      served = load_model(arguments.policy, lengths, _MODEL_LENGTHS)
    render = prompt_format(arguments, served.config)
    slots = _SLOTS if arguments.slots is None else arguments.slots
    engine = served.engine(slots=slots, segment=16)
    progress.stage('sampling')
    with storage.open_binary(file) as lines, _output(output) as write:
      results = sample_lines(
        engine,
        served.tokenizer,
        lines,
        defaults={
          'n': arguments.count,
          'max_tokens': served.max_response_length,
          'temperature': arguments.temperature,
          'top_p': arguments.top_p,
          'top_k': arguments.top_k,
          'min_p': arguments.min_p,
        },
        seed=arguments.seed,
        render=render,
      )
      tally = _write(results, write)
  tally.check(arguments.file)


@dataclasses.dataclass
class _Tally:
  """Numbers of lines, and the first error."""

  lines: int = 0
  refused: int = 0
  first: str = ''

  def check(self, file: str) -> None:
    """Raises `ValueError` if lines were refused."""
    if self.refused:
      raise ValueError(
        f'the lines of {file} must be valid requests, got {self.refused} of'
        f' {self.lines} that are not; {self.first}'
      )


def _write(
  results: Iterable[dict[str, Any]], write: Callable[[str], object]
) -> _Tally:
  """Writes a line per result."""
  tally = _Tally()
  for result in results:
    write(json.dumps(result, ensure_ascii=False) + '\n')
    tally.lines += 1
    if 'error' in result:
      tally.refused += 1
      tally.first = tally.first or f'line {result["line"]}: {result["error"]}'
  return tally


@contextlib.contextmanager
def _output(path: epath.Path | None) -> Iterator[Callable[[str], object]]:
  """Opens the output; yields a function that writes a line to it.

  Raises:
    StorageError: the file cannot be written.
  """
  from covrl import storage

  if path is None:
    yield lambda line: print(line, end='', flush=True)
    return
  with storage.writing(path):
    stream = path.open('w')

  def write(line: str) -> None:
    with storage.writing(path):
      stream.write(line)
      stream.flush()

  try:
    yield write
  finally:
    with storage.writing(path):
      stream.close()
