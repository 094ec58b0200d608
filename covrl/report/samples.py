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
from covrl.report.inputs.run_data import RunData
from covrl.report.inputs.run_json import finite_number, short_text

NUM_SHADES = 9  # shades of positive, and of negative, covariances
_MAX_RESPONSES = 12  # per table
_MAX_TOKENS = 2_000  # per page
_MAX_TOKEN_CHARACTERS = 120
_MAX_PROMPT_CHARACTERS = 600
# Displayed signs for white space, and for the blank of sentencepiece.
_VISIBLE_SIGNS = str.maketrans({'\n': '⏎', '\t': '⇥', '\u2581': ' '})


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
    num_hidden_tokens: number of tokens beyond the limit of the page.
    reward: reward as text.
    is_positive: whether the reward is positive.
    advantage: advantage as text.
    selected: number of selected tokens.
  """

  prompt: str
  tokens: Sequence[Token]
  num_hidden_tokens: int
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
  displayed_files = [files[-1], files[0]] if len(files) > 1 else files
  tables = [
    _table(run.samples(path), _MAX_TOKENS // 2) for path in displayed_files
  ]
  return [table for table in tables if table.responses]


def _table(content: Mapping[str, Any], max_tokens: int) -> SampleTable:
  """Table of the responses in one file, with at most `max_tokens` tokens."""
  samples = list(content['samples'])
  samples.sort(
    key=lambda sample: -sum(map(bool, _list_field(sample, 'selected')))
  )
  samples, total = samples[:_MAX_RESPONSES], len(samples)
  scale = _scale(samples)
  max_tokens_per_response = max(max_tokens // max(len(samples), 1), 1)
  return SampleTable(
    iteration=short_text(content.get('iteration', '?'), 20),
    responses=[
      _response(sample, scale, max_tokens_per_response) for sample in samples
    ],
    total=total,
    scale=formats.number(scale, 2),
  )


def _scale(samples: Sequence[Mapping[str, Any]]) -> float:
  """The covariance of the deepest shade: the 99th percentile of |cov|."""
  magnitudes = [
    abs(number)
    for sample in samples
    for value in _list_field(sample, 'covariance')
    if (number := finite_number(value)) is not None
  ]
  return float(np.quantile(magnitudes, 0.99)) or 1.0 if magnitudes else 1.0


def _response(
  sample: Mapping[str, Any], scale: float, max_tokens_per_response: int
) -> Response:
  """One response with at most `max_tokens_per_response` displayed tokens."""
  texts = sample['tokens']
  size = len(texts)
  selected = [value is True for value in _list_field(sample, 'selected')][:size]
  columns = [
    _padded(_list_field(sample, name), size)
    for name in ('covariance', 'logprobs')
  ]
  tokens = [
    Token(
      text=short_text(text, _MAX_TOKEN_CHARACTERS).translate(_VISIBLE_SIGNS)
      or '∅',
      shade=_shade(finite_number(covariance), scale),
      selected=bool(is_selected),
      note=_note(
        finite_number(logprob), finite_number(covariance), is_selected
      ),
    )
    for text, covariance, logprob, is_selected in zip(
      texts[:max_tokens_per_response],
      *columns,
      _padded(selected, size),
      strict=False,
    )
  ]
  reward = finite_number(sample.get('reward'))
  advantage = finite_number(sample.get('advantage'))
  return Response(
    prompt=short_text(
      sample.get('prompt') or '', _MAX_PROMPT_CHARACTERS
    ).strip(),
    tokens=tokens,
    num_hidden_tokens=max(size - max_tokens_per_response, 0),
    reward='–' if reward is None else formats.number(reward),
    is_positive=reward is not None and reward > 0,
    advantage='–' if advantage is None else formats.signed(advantage, 2),
    selected=sum(selected),
  )


def _shade(covariance: float | None, scale: float) -> int:
  """Shade of a covariance."""
  if covariance is None:
    return 0
  fraction = math.sqrt(min(abs(covariance) / scale, 1.0))
  return int(math.copysign(round(NUM_SHADES * fraction), covariance))


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


def _list_field(sample: Mapping[str, Any], name: str) -> list[Any]:
  """A field that is a list; empty if it is missing or something else."""
  value = sample.get(name)
  return list(value) if isinstance(value, list) else []


def _padded(values: list[Any], size: int) -> list[Any]:
  """A list of one value per token, padded with `None`."""
  return (values + [None] * size)[:size]
