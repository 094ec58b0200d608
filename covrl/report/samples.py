# SPDX-License-Identifier: Apache-2.0
"""Sample responses with each token's covariance and whether it was selected.

Shades are nine steps to each side of 0, on a square-root scale: covariances
have heavy tails, and a linear scale would show a single token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from covrl.report import words
from covrl.report.run import Run, read_json

STEPS = 9
_RESPONSES = 12  # of one iteration
_TOKENS = 2_000  # on the page, all responses together
_VISIBLE = str.maketrans({'\n': '⏎', '\t': '⇥', '\u2581': ' '})


@dataclasses.dataclass(frozen=True)
class Token:
  """One token of a response.

  Attributes:
    text: as it is shown.
    shade: −9 to 9, the covariance's sign and size.
    selected: by the entropy-control method.
    note: log-probability and covariance in words.
  """

  text: str
  shade: int
  selected: bool
  note: str


@dataclasses.dataclass(frozen=True)
class Response:
  """One response to one prompt; `hidden` tokens were too many to show."""

  prompt: str
  tokens: Sequence[Token]
  hidden: int
  reward: str
  right: bool
  advantage: str
  selected: int


@dataclasses.dataclass(frozen=True)
class SampleTable:
  """Responses of one iteration, and the scale of their shades.

  Attributes:
    iteration: when they were sampled.
    responses: those with the most selected tokens first.
    total: how many were kept in the file.
    scale: the covariance with the deepest shade, in words.
  """

  iteration: str
  responses: Sequence[Response]
  total: int
  scale: str


def sample_tables(run: Run) -> list[SampleTable]:
  """Tables of the latest kept samples and of the first."""
  files = run.rollout_files
  chosen = [files[-1], files[0]] if len(files) > 1 else files
  tables = [_table(read_json(path), _TOKENS // 2) for path in chosen]
  return [table for table in tables if table.responses]


def _table(content: Mapping[str, Any], budget: int) -> SampleTable:
  """Responses of one file, within a budget of tokens."""
  samples = [s for s in content.get('samples') or () if s.get('tokens')]
  samples.sort(key=lambda sample: -sum(map(bool, _list(sample, 'selected'))))
  samples, total = samples[:_RESPONSES], len(samples)
  scale = _scale(samples)
  limit = max(budget // max(len(samples), 1), 1)
  return SampleTable(
    iteration=str(content.get('iteration', '?')),
    responses=[_response(sample, scale, limit) for sample in samples],
    total=total,
    scale=words.number(scale, 2),
  )


def _scale(samples: Sequence[Mapping[str, Any]]) -> float:
  """The 99th percentile of |covariance|: the deepest shade."""
  sizes = [
    abs(value)
    for sample in samples
    for value in _list(sample, 'covariance')
    if _finite(value)
  ]
  return float(np.quantile(sizes, 0.99)) or 1.0 if sizes else 1.0


def _response(sample: Mapping[str, Any], scale: float, limit: int) -> Response:
  """One response, its tokens shaded."""
  texts = sample['tokens']
  covariances = _padded(_list(sample, 'covariance'), len(texts))
  logprobs = _padded(_list(sample, 'logprobs'), len(texts))
  selected = _padded(_list(sample, 'selected'), len(texts))
  reward, advantage = sample.get('reward'), sample.get('advantage')
  tokens = [
    Token(
      text=str(text).translate(_VISIBLE) or '∅',
      shade=_shade(covariance, scale),
      selected=bool(chosen),
      note=_note(logprob, covariance, bool(chosen)),
    )
    for text, covariance, logprob, chosen in zip(
      texts, covariances, logprobs, selected, strict=True
    )
  ]
  return Response(
    prompt=str(sample.get('prompt', '')).strip(),
    tokens=tokens[:limit],
    hidden=max(len(tokens) - limit, 0),
    reward=words.number(reward) if _finite(reward) else '–',
    right=_finite(reward) and reward > 0,
    advantage=words.signed(advantage, 2) if _finite(advantage) else '–',
    selected=sum(token.selected for token in tokens),
  )


def _shade(covariance: Any, scale: float) -> int:
  """A covariance as a step of the diverging scale."""
  if not _finite(covariance):
    return 0
  share = math.sqrt(min(abs(covariance) / scale, 1.0))
  return int(math.copysign(round(STEPS * share), covariance))


def _note(logprob: Any, covariance: Any, selected: bool) -> str:
  """What the pointer shows on a token."""
  parts = []
  if _finite(logprob):
    parts.append(f'log π {words.fixed(logprob, 2)}')
  if _finite(covariance):
    parts.append(f'covariance {words.signed(covariance, 3)}')
  if selected:
    parts.append('selected')
  return ', '.join(parts)


def _list(sample: Mapping[str, Any], name: str) -> list[Any]:
  value = sample.get(name)
  return list(value) if isinstance(value, list) else []


def _padded(values: list[Any], size: int) -> list[Any]:
  """A per-token list at the response's length; `None` where it ends early."""
  return (values + [None] * size)[:size]


def _finite(value: Any) -> TypeGuard[float]:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )
