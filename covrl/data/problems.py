# SPDX-License-Identifier: Apache-2.0
"""What a prompt is before it is tokens, and what a source of them must do."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """One thing to ask the policy, with what it takes to judge the answer.

  Attributes:
    prompt: the text the policy is given.
    reference: what the scorer needs: an answer or metadata, JSON-able.
    source: the name of the source the problem is from.
    solution: a correct response to imitate; `None` where nobody knows one.
    messages: the conversation that the prompt is the last question of, where
      the source has it as one.
    kind: how the answer is to be judged, such as `math`; a task decides.
    pass_rate: share of responses that were right when somebody measured it.
    key: what tells the problem from others, whatever file it is in and
      however it is put; equal questions have equal keys. Empty where nothing
      needs it.
    place: where it stands, for sentences about it; may be empty.
    column: where its reference stands there; may be empty.
  """

  prompt: str
  reference: Any
  source: str
  solution: str | None = None
  messages: tuple[Mapping[str, Any], ...] = ()
  kind: str = ''
  pass_rate: float | None = None
  key: str = ''
  place: str = ''
  column: str = ''


@runtime_checkable
class ProblemSource(Protocol):
  """Problems by index: a Grain `RandomAccessDataSource` of `Problem`.

  `source[index]` depends on the index alone, so that a stream can be resumed
  from one number, and it may be called from several threads at once.
  """

  @property
  def names(self) -> tuple[str, ...]:
    """Every value that `Problem.source` takes; its place is the source id."""
    ...

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Problem: ...


@runtime_checkable
class Fingerprinted(Protocol):
  """A source that files may change under, and that would notice."""

  @property
  def fingerprint(self) -> str:
    """Differs where the problems do."""
    ...


def fingerprint_of(source: ProblemSource) -> str:
  """What tells the problems of a source from others; may be empty."""
  return source.fingerprint if isinstance(source, Fingerprinted) else ''
