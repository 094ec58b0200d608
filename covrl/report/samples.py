# SPDX-License-Identifier: Apache-2.0
"""Tables of sampled responses, with the covariance of each token.

Covariances are shown as shades with nine steps on each side of 0. The scale is
a square root because covariances have heavy tails.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np

from covrl.report import formats
from covrl.report.run_data import RunData, read_json

STEPS = 9
_RESPONSES = 12  # per table
_TOKENS = 2_000  # per page
_VISIBLE = str.maketrans({'\n': '⏎', '\t': '⇥', '\u2581': ' '})


@dataclasses.dataclass(frozen=True)
class Token:
  """One token of a response.

  Attributes:
    text: displayed text.
    shade: −9 to 9, sign and size of the covariance.
    selected: whether the entropy-control method selected it.
    note: log-probability and covariance as text.
  """

  text: str
  shade: int
  selected: bool
  note: str


@dataclasses.dataclass(frozen=True)
class Response:
  """One response to one prompt.

  Attributes:
    prompt: text of the prompt.
    tokens: displayed tokens.
    hidden: number of tokens beyond the limit of the page.
    reward: reward as text.
    right: whether the reward is positive.
    advantage: advantage as text.
    selected: number of selected tokens.
  """

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
    iteration: iteration as text.
    responses: responses, the most selected tokens first.
    total: number of responses in the file.
    scale: covariance of the deepest shade, as text.
  """

  iteration: str
  responses: Sequence[Response]
  total: int
  scale: str


def sample_tables(run: RunData) -> list[SampleTable]:
  """Tables of the latest and of the first saved samples."""
  files = run.rollout_files
  chosen = [files[-1], files[0]] if len(files) > 1 else files
  tables = [_table(read_json(path), _TOKENS // 2) for path in chosen]
  return [table for table in tables if table.responses]


def _table(content: Mapping[str, Any], budget: int) -> SampleTable:
  """Table of the responses in one file, with at most `budget` tokens."""
  samples = [s for s in content.get('samples') or () if s.get('tokens')]
  samples.sort(key=lambda sample: -sum(map(bool, _list(sample, 'selected'))))
  samples, total = samples[:_RESPONSES], len(samples)
  scale = _scale(samples)
  limit = max(budget // max(len(samples), 1), 1)
  return SampleTable(
    iteration=str(content.get('iteration', '?')),
    responses=[_response(sample, scale, limit) for sample in samples],
    total=total,
    scale=formats.number(scale, 2),
  )


def _scale(samples: Sequence[Mapping[str, Any]]) -> float:
  """The covariance of the deepest shade: the 99th percentile of |cov|."""
  sizes = [
    abs(value)
    for sample in samples
    for value in _list(sample, 'covariance')
    if _finite(value)
  ]
  return float(np.quantile(sizes, 0.99)) or 1.0 if sizes else 1.0


def _response(sample: Mapping[str, Any], scale: float, limit: int) -> Response:
  """One response with at most `limit` displayed tokens."""
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
    reward=formats.number(reward) if _finite(reward) else '–',
    right=_finite(reward) and reward > 0,
    advantage=formats.signed(advantage, 2) if _finite(advantage) else '–',
    selected=sum(token.selected for token in tokens),
  )


def _shade(covariance: Any, scale: float) -> int:
  """Shade of a covariance."""
  if not _finite(covariance):
    return 0
  fraction = math.sqrt(min(abs(covariance) / scale, 1.0))
  return int(math.copysign(round(STEPS * fraction), covariance))


def _note(logprob: Any, covariance: Any, selected: bool) -> str:
  """Tooltip of a token."""
  parts = []
  if _finite(logprob):
    parts.append(f'log π {formats.fixed(logprob, 2)}')
  if _finite(covariance):
    parts.append(f'covariance {formats.signed(covariance, 3)}')
  if selected:
    parts.append('selected')
  return ', '.join(parts)


def _list(sample: Mapping[str, Any], name: str) -> list[Any]:
  value = sample.get(name)
  return list(value) if isinstance(value, list) else []


def _padded(values: list[Any], size: int) -> list[Any]:
  """A list of one value per token, padded with `None`."""
  return (values + [None] * size)[:size]


def _finite(value: Any) -> TypeGuard[float]:
  return (
    isinstance(value, int | float)
    and not isinstance(value, bool)
    and math.isfinite(value)
  )
