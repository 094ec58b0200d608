# SPDX-License-Identifier: Apache-2.0
"""What a prompt is before it is tokens, and what a source of them must do."""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol, runtime_checkable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
  """One thing to ask the policy, with what it takes to judge the answer.

  Attributes:
    prompt: the text the policy is given.
    reference: what the scorer needs: an answer or metadata, JSON-able.
    source: the name of the source the problem is from.
    solution: a correct response to imitate; `None` where nobody knows one.
  """

  prompt: str
  reference: Any
  source: str
  solution: str | None = None


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
