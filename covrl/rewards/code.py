# SPDX-License-Identifier: Apache-2.0
"""Reward of programs: the share of passed tests."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.rewards.outcome import Outcome
from covrl.rewards.reward import Reward
from covrl.rewards.sandbox import Judge, judge_code

# Time limit for all tests of a response, after which it is masked. Tests run one
# after the other, and a program that exceeds its time limit is not run again.
_TIMEOUT_SECONDS = 120.0
_EXAMPLE = 'print(input())', [{'stdin': '1', 'stdout': '1'}]


def code_reward(
  *,
  backend: str | None = None,
  url: str | None = None,
  packages: tuple[str, ...] | None = None,
  time_limit: float = 4.0,
  name: str = 'code',
  weight: float = 1.0,
  sources: tuple[str, ...] = (),
) -> Reward:
  """Returns a reward that is the share of passed tests; see `judge_code`.

  In evaluations only a program that passes all tests is correct.

  Args:
    backend: sandbox backend of programs, see `Judge`; if `None` the best that
      works in this process, which all workers then use. Programs run unsandboxed
      only on request.
    url: address of the server of the backend 'remote'.
    packages: installed packages that programs may import, see `Judge`.
    time_limit: seconds that each test may take, see `judge_code`.
    name: name in the metrics, see `Reward`.
    weight: weight in the total, see `Reward`.
    sources: data sources that it scores, see `Reward`.

  Raises:
    JudgeError: `backend` is `None` and none works.
    ValueError: `backend` is `None` and a package is not installed.
  """
  if backend is None:
    # Backends have other rules, so workers must not choose one each.
    backend = cached_judge(None, url, packages).backend
  return Reward(
    name=name,
    score=functools.partial(
      score_code,
      backend=backend,
      url=url,
      packages=packages,
      time_limit=time_limit,
    ),
    weight=weight,
    sources=sources,
    timeout=_TIMEOUT_SECONDS,
    example=_EXAMPLE,
    network=url is not None,
  )


def score_code(
  response: str,
  reference: Sequence[Mapping[str, Any]],
  *,
  backend: str | None = None,
  url: str | None = None,
  packages: tuple[str, ...] | None = None,
  time_limit: float = 4.0,
) -> Outcome:
  """Returns the share of the reference's tests that a program passes."""
  return judge_code(
    response,
    reference,
    time_limit=time_limit,
    pass_rate=True,
    judge=cached_judge(backend, url, packages),
  )


@functools.cache
def cached_judge(
  backend: str | None = None,
  url: str | None = None,
  packages: tuple[str, ...] | None = None,
) -> Judge:
  """Returns this process's judge with a sandbox backend; cached.

  Raises:
    JudgeError: if the backend does not work on this machine.
    ValueError: if the backend is unknown or a package is not installed.
  """
  return Judge(backend=backend, url=url, packages=packages)
