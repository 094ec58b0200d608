# SPDX-License-Identifier: Apache-2.0
"""Run-time checks of shape annotations, for jaxtyping's import hook."""

import typing
from collections.abc import Callable
from typing import Any

from beartype import beartype


def check(function: Callable[..., Any]) -> Callable[..., Any]:
  """Checks a function's annotations, except `Literal` ones, on every call.

  Functions refuse unknown options with errors of their own, which tests expect.
  """
  annotations = getattr(function, '__annotations__', {})
  for name, hint in annotations.items():
    if typing.get_origin(hint) is typing.Literal:
      annotations[name] = type(typing.get_args(hint)[0])
  return beartype(function)
