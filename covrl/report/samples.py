# SPDX-License-Identifier: Apache-2.0
"""Tables of sampled responses, with the covariance of each token.

Covariances are shown as shades with nine steps on each side of 0. The scale is
a square root because covariances have heavy tails.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from covrl.report import formats
from covrl.report.run_data import RunData
from covrl.report.run_json import finite_number, short_text

STEPS = 9  # shades of positive, and of negative, covariances
_MAX_RESPONSES = 12  # per table
_MAX_TOKENS = 2_000  # per page
_MAX_TOKEN_CHARACTERS = 120
_MAX_PROMPT_CHARACTERS = 600
# Displayed signs for white space, and for the blank of sentencepiece.
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
    is_positive: whether the reward is positive.
    advantage: advantage as text.
    selected: number of selected tokens.
  """

  prompt: str
  tokens: Sequence[Token]
  hidden: int
  reward: str
  is_positive: bool
  advantage: str
  selected: int


@dataclasses.dataclass(frozen=True)
class SampleTable:
  """Responses of one iteration, and the scale of their shades.

  Attributes:
    iteration: iteration as text.
    responses: responses, those with the most selected tokens first.
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
  tables = [_table(run.samples(path), _MAX_TOKENS // 2) for path in chosen]
  return [table for table in tables if table.responses]


def _table(content: Mapping[str, Any], budget: int) -> SampleTable:
  """Table of the responses in one file, with at most `budget` tokens."""
  samples = list(content['samples'])
  samples.sort(key=lambda sample: -sum(map(bool, _list(sample, 'selected'))))
  samples, total = samples[:_MAX_RESPONSES], len(samples)
  scale = _scale(samples)
  limit = max(budget // max(len(samples), 1), 1)
  return SampleTable(
    iteration=short_text(content.get('iteration', '?'), 20),
    responses=[_response(sample, scale, limit) for sample in samples],
    total=total,
    scale=formats.number(scale, 2),
  )


def _scale(samples: Sequence[Mapping[str, Any]]) -> float:
  """The covariance of the deepest shade: the 99th percentile of |cov|."""
  sizes = [
    abs(number)
    for sample in samples
    for value in _list(sample, 'covariance')
    if (number := finite_number(value)) is not None
  ]
  return float(np.quantile(sizes, 0.99)) or 1.0 if sizes else 1.0


def _response(sample: Mapping[str, Any], scale: float, limit: int) -> Response:
  """One response with at most `limit` displayed tokens."""
  texts = sample['tokens']
  size = len(texts)
  chosen = [value is True for value in _list(sample, 'selected')][:size]
  columns = [
    _padded(_list(sample, name), size) for name in ('covariance', 'logprobs')
  ]
  tokens = [
    Token(
      text=short_text(text, _MAX_TOKEN_CHARACTERS).translate(_VISIBLE) or '∅',
      shade=_shade(finite_number(covariance), scale),
      selected=bool(is_chosen),
      note=_note(finite_number(logprob), finite_number(covariance), is_chosen),
    )
    for text, covariance, logprob, is_chosen in zip(
      texts[:limit], *columns, _padded(chosen, size), strict=False
    )
  ]
  reward = finite_number(sample.get('reward'))
  advantage = finite_number(sample.get('advantage'))
  return Response(
    prompt=short_text(
      sample.get('prompt') or '', _MAX_PROMPT_CHARACTERS
    ).strip(),
    tokens=tokens,
    hidden=max(size - limit, 0),
    reward='–' if reward is None else formats.number(reward),
    is_positive=reward is not None and reward > 0,
    advantage='–' if advantage is None else formats.signed(advantage, 2),
    selected=sum(chosen),
  )


def _shade(covariance: float | None, scale: float) -> int:
  """Shade of a covariance."""
  if covariance is None:
    return 0
  fraction = math.sqrt(min(abs(covariance) / scale, 1.0))
  return int(math.copysign(round(STEPS * fraction), covariance))


def _note(
  logprob: float | None, covariance: float | None, selected: bool
) -> str:
  """Tooltip of a token."""
  parts = []
  if logprob is not None:
    parts.append(f'log π {formats.fixed(logprob, 2)}')
  if covariance is not None:
    parts.append(f'covariance {formats.signed(covariance, 3)}')
  if selected:
    parts.append('selected')
  return ', '.join(parts)


def _list(sample: Mapping[str, Any], name: str) -> list[Any]:
  """A field that is a list; empty if it is missing or something else."""
  value = sample.get(name)
  return list(value) if isinstance(value, list) else []


def _padded(values: list[Any], size: int) -> list[Any]:
  """A list of one value per token, padded with `None`."""
  return (values + [None] * size)[:size]
