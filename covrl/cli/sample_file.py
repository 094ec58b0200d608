# SPDX-License-Identifier: Apache-2.0
"""Samples responses to a file of prompts: `covrl sample --file`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, TYPE_CHECKING, Any

from covrl.cli.policies import (
  caching,
  check_numbers,
  is_run,
  print_prompt_notes,
  prompt_format,
)

if TYPE_CHECKING:
  from etils import epath

  from covrl.serve import ServedPolicy

# Default limits of a pretrained model's prompts and responses, in tokens.
_MODEL_LENGTHS = (2048, 256)
_SLOTS = 16
# Options on which responses depend, besides those of the policy and of prompts.
_OPTIONS = (
  *('count', 'temperature', 'top_p', 'top_k', 'min_p', 'seed'),
  'cache_dtype',
)


def run(arguments: argparse.Namespace) -> None:
  """Writes the responses, one line for each line of the file.

  Raises:
    ValueError: an option is invalid, or lines were refused; then responses to
      the others were written.
  """
  with contextlib.ExitStack() as resources:
    _run(arguments, resources)


def _run(
  arguments: argparse.Namespace, resources: contextlib.ExitStack
) -> None:
  """Writes the responses; see `run`."""
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
  cache = caching(arguments)
  output, tally = None, _Tally()
  write: Callable[[str], object] | None = None
  if arguments.output is not None:
    output = storage.as_path(arguments.output)
    if arguments.resume:
      if not storage.is_bucket(output) and output.exists():
        write = resources.enter_context(_output(output, is_new=False))
      tally = _finished_lines(file, output)
    elif output.exists():
      raise _exists_error(output)
  elif arguments.resume:
    raise ValueError('--output must be given with --resume, got none')
  check_numbers(arguments)
  with Progress() as progress:
    progress.stage('loading the policy')
    lengths = arguments.max_prompt_length, arguments.max_length
    if is_run(arguments.policy):
      served = load_run(arguments.policy, lengths, trust=arguments.trust)
    else:
      served = load_model(arguments.policy, lengths, _MODEL_LENGTHS)
    render = prompt_format(arguments, served.config)
    print_prompt_notes(arguments, served.config, served.tokenizer, progress)
    fingerprint = _fingerprint(arguments, served, render)
    tally.check_fingerprint(fingerprint)
    slots = _SLOTS if arguments.slots is None else arguments.slots
    engine = served.engine(slots=slots, segment=16, caching=cache)
    progress.stage('sampling')
    is_new = not arguments.resume
    write = write or resources.enter_context(_output(output, is_new=is_new))
    with storage.open_binary(file) as stream:
      lines = _Lines(stream)
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
        after_line=tally.last,
      )
      _write(results, write, tally, fingerprint, lines)
  tally.check(arguments.file)


@dataclasses.dataclass
class _Tally:
  """Counts of the results.

  Attributes:
    count: number of results.
    refused: number of results that are errors.
    last: number of the last line of the file that has a result.
    first_error: the first error; empty without one.
    fingerprints: those of policy and options in the results of an interrupted
      command, see `_fingerprint`.
  """

  count: int = 0
  refused: int = 0
  last: int = 0
  first_error: str = ''
  fingerprints: set[Any] = dataclasses.field(default_factory=set)

  def add(self, result: Mapping[str, Any]) -> None:
    """Counts a result."""
    self.count += 1
    self.last = result['line']
    if 'error' in result:
      self.refused += 1
      self.first_error = (
        self.first_error or f'line {result["line"]}: {result["error"]}'
      )

  def check_fingerprint(self, expected: str) -> None:
    """Raises `ValueError` if results are of another policy or other options."""
    if self.fingerprints - {expected}:
      raise ValueError(
        '--resume must be given with the policy and the options of the interrupted'
        ' command, got others than those of the results in --output'
      )

  def check(self, file: str) -> None:
    """Raises `ValueError` if lines were refused."""
    if self.refused:
      raise ValueError(
        f'the lines of {file} must be valid requests, got {self.refused} of'
        f' {self.count} that are not; {self.first_error}'
      )


class _Lines:
  """The lines of a file, and digests of those that have been read.

  Args:
    lines: the lines.
  """

  def __init__(self, lines: Iterable[bytes]) -> None:
    self._lines = lines
    self._digests: dict[int, str] = {}

  def __iter__(self) -> Iterator[bytes]:
    for number, line in enumerate(self._lines, 1):
      self._digests[number] = _line_digest(line)
      yield line

  def take_digest(self, number: int) -> str:
    """Returns the digest of a line that has been read, and removes it."""
    return self._digests.pop(number)


def _line_digest(line: bytes) -> str:
  """Returns a digest of a line, without white space around it."""
  return hashlib.sha256(line.strip()).hexdigest()[:8]


def _write(
  results: Iterable[dict[str, Any]],
  write: Callable[[str], object],
  tally: _Tally,
  fingerprint: str,
  lines: _Lines,
) -> None:
  """Writes a line per result, with the fingerprint of policy, options and line."""
  for result in results:
    digest = lines.take_digest(result['line'])
    text = json.dumps(
      {**result, 'fingerprint': f'{fingerprint}-{digest}'}, ensure_ascii=False
    )
    # Halves of surrogate pairs become escapes, as JSON has them.
    write(text.encode(errors='backslashreplace').decode() + '\n')
    tally.add(result)


def _fingerprint(
  arguments: argparse.Namespace,
  served: ServedPolicy,
  render: Callable[[str], str],
) -> str:
  """Returns a digest of all that responses depend on besides their line.

  Those are the policy, the format of prompts, and the options, except for names of
  files and the number of slots.
  """
  options = [getattr(arguments, name) for name in _OPTIONS]
  parts = [served.fingerprint(), render('prompt'), options]
  return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _finished_lines(file: epath.Path, output: epath.Path) -> _Tally:
  """Counts the results of an interrupted command; removes an unfinished line.

  Raises:
    ValueError: the output is not that of the first lines of the file.
    StorageError: the unfinished line cannot be removed.
  """
  from covrl import storage

  tally, size = _Tally(), 0
  if storage.is_bucket(output):
    raise ValueError(f'--output must be local with --resume, got {output}')
  if not output.exists():
    return tally
  with (
    storage.open_binary(file) as lines,
    storage.open_binary(output) as results,
  ):
    expected = (entry for entry in enumerate(lines, 1) if entry[1].strip())
    for result_number, text in enumerate(results, 1):
      if not text.endswith(b'\n'):
        break
      number, line = next(expected, (0, b''))
      result = _parsed(text)
      fields = result if isinstance(result, dict) else {}
      fingerprint = str(fields.get('fingerprint'))
      fingerprint, dash, digest = fingerprint.partition('-')
      is_of_line = not dash or digest == _line_digest(line)
      expected_fields = number, _prompt(line)
      if not is_of_line or expected_fields != (
        fields.get('line'),
        fields.get('prompt'),
      ):
        raise ValueError(
          f'--output must have results of the first lines of {file}, got another'
          f" line's result in line {result_number} of {output}"
        )
      tally.add(fields)
      tally.fingerprints.add(fingerprint)
      size += len(text)
  with storage.writing(output):
    os.truncate(output, size)
  return tally


def _prompt(line: bytes) -> Any:
  """Returns the prompt of a line; `None` without one."""
  fields = _parsed(line)
  return fields.get('prompt') if isinstance(fields, dict) else None


def _parsed(line: bytes) -> Any:
  """Returns a line's content; `None` if it is not JSON."""
  try:
    return json.loads(line)
  except (ValueError, RecursionError):
    return None


@contextlib.contextmanager
def _output(
  path: epath.Path | None, *, is_new: bool
) -> Iterator[Callable[[str], object]]:
  """Opens the output; yields a function that appends a line to it.

  Args:
    path: the file; standard output if `None`.
    is_new: whether the file must not exist.

  Raises:
    StorageError: the file cannot be written.
    ValueError: another command writes it, or it exists and must not.
  """
  from covrl import storage

  if path is None:
    yield lambda line: print(line, end='', flush=True)
    return
  is_local = not storage.is_bucket(path)
  mode = 'x' if is_new and is_local else 'a' if path.exists() else 'w'
  try:
    with storage.writing(path):
      # Another command may have created it since the policy was loaded.
      stream = (pathlib.Path(path) if is_local else path).open(
        mode, encoding='utf-8'
      )
  except FileExistsError:
    raise _exists_error(path) from None

  def write(line: str) -> None:
    """Appends a line, and flushes it."""
    with storage.writing(path):
      stream.write(line)
      stream.flush()

  try:
    if is_local:
      _lock(stream, path)
    yield write
  finally:
    with storage.writing(path):
      stream.close()


def _exists_error(path: epath.Path) -> ValueError:
  return ValueError(
    f'--output must be a new file, got {path}, which exists; --resume continues the'
    ' output of an interrupted command'
  )


def _lock(stream: IO[str], path: epath.Path) -> None:
  """Locks an output, so that two commands do not mix their lines.

  Raises:
    ValueError: another command writes it.
  """
  try:
    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise ValueError(
      f'--output must be the file of one command, got {path}, which another writes'
    ) from None
  except OSError:
    return  # A file system without locks.
