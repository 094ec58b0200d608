# SPDX-License-Identifier: Apache-2.0
"""Protocol between a benchmark and one library in a process of its own.

The driver starts `python -m peers.LIBRARY_peer SHAPE`, SHAPE being JSON. The peer
prints one JSON object when it is ready, and then one for each command on its
standard input, `step`, `rollout` or another stage: seconds by stage, CPU seconds,
and the number of sampled tokens. The file needs the standard library
only, as it is imported in every environment.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

PAD_ID = 0
# Token i is written as the character with code point FIRST_CHARACTER + i.
FIRST_CHARACTER = 0x100
# Standard deviation of all matrices: logits differ by about a tenth, so that the
# policy is almost uniform and end tokens make lengths geometric.
SCALE = 0.02
LEARNING_RATE = 1e-6
CLIP = 0.2
MAX_GRADIENT_NORM = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
  """Sizes of a policy and of an iteration.

  Attributes:
    prompts: prompts per iteration.
    group: responses per prompt.
    prompt: tokens of each prompt.
    response: maximum number of tokens of a response.
    layers: blocks of the policy.
    width: of the residual stream; a quarter of it is a head's width.
    vocabulary: number of tokens.
    num_end_tokens: number of tokens that end a response, ids 1 to `num_end_tokens`; without any,
      all responses are of full length.
  """

  prompts: int
  group: int
  prompt: int
  response: int
  layers: int = 2
  width: int = 128
  vocabulary: int = 1024
  num_end_tokens: int = 0

  @property
  def sequences(self) -> int:
    """Number of responses."""
    return self.prompts * self.group

  @property
  def head_sizes(self) -> tuple[int, int, int]:
    """Numbers of query heads and of key heads, and the width of a head."""
    return 4, 2, self.width // 4

  @property
  def feed_forward_width(self) -> int:
    """Width of the feed-forward layer: 8/3 of the model's, rounded up to
    a multiple of 8."""
    return -(-self.width * 8 // 3 // 8) * 8

  @property
  def end_ids(self) -> tuple[int, ...]:
    """Tokens that end a response."""
    return tuple(range(1, self.num_end_tokens + 1))

  def __str__(self) -> str:
    lengths = f'{self.prompt} + {self.response}'
    if self.num_end_tokens:
      mean = self.vocabulary // self.num_end_tokens
      lengths += f' at most, geometric of mean {mean}'
    return (
      f'{self.prompts} × {self.group}, {lengths}, {self.layers} layers, '
      f'width {self.width}, vocabulary {self.vocabulary:,}'
    )


def encode(text: str) -> list[int]:
  """Ids of a text; each character is a token."""
  return [ord(character) - FIRST_CHARACTER for character in text]


def decode(ids: Any) -> str:
  """Text of ids."""
  return ''.join(chr(FIRST_CHARACTER + int(token)) for token in ids)


def prompts_of(shape: Shape, prompt_set: int) -> list[str]:
  """Distinct prompts of full length, without end tokens."""
  first_id = shape.num_end_tokens + 1
  return [
    decode(
      first_id
      + (prompt_set * 7919 + row * 104_729 + token * 31)
      % (shape.vocabulary // 2)
      for token in range(shape.prompt)
    )
    for row in range(shape.prompts)
  ]


def reward(response: str) -> float:
  """Whether a response ends with a token of the vocabulary's first half."""
  return float(response[-1:] < chr(FIRST_CHARACTER + 512))


class Commands:
  """The peer's side of the protocol."""

  def __init__(self) -> None:
    """Reserves standard output for answers; sends prints to standard error."""
    self._answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)

  def ready(self, **versions: str) -> None:
    """Reports that the peer can run."""
    self.answer({'versions': versions})

  def answer(self, values: dict[str, Any]) -> None:
    """Prints the measurements of a command."""
    print(json.dumps(values), file=self._answers, flush=True)

  def __iter__(self) -> Iterator[str]:
    """Yields commands until the driver closes the pipe."""
    for line in sys.stdin:
      yield line.strip()

  def serve(self, stages: dict[str, Callable[[], dict[str, float]]]) -> None:
    """Runs a function for each command."""
    for command in self:
      self.answer(stages[command]())


def read_shape() -> Shape:
  """The shape in the process's first argument."""
  return Shape(**json.loads(sys.argv[1]))


class Stopwatch:
  """A stopwatch: seconds by stage and in total, and CPU seconds."""

  def __init__(self) -> None:
    self.seconds: dict[str, float] = {}
    self._cpu_started = time.process_time()
    self._started = self._last = time.perf_counter()

  def lap(self, stage: str) -> None:
    """Adds the seconds since the last lap to a stage."""
    now = time.perf_counter()
    self.seconds[stage] = self.seconds.get(stage, 0) + now - self._last
    self._last = now

  def total(self) -> dict[str, float]:
    """Seconds by stage and in total (`step`), and CPU seconds (`cpu_seconds`)."""
    return {
      **self.seconds,
      'step': time.perf_counter() - self._started,
      'cpu_seconds': time.process_time() - self._cpu_started,
    }
