# SPDX-License-Identifier: Apache-2.0
"""Reference vectors, padded to one shape: one compilation."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

GOLDEN = pathlib.Path(__file__).parent / 'golden' / 'policy_losses.npz'
ROWS, LENGTH = 16, 64


@dataclasses.dataclass(frozen=True)
class Case:
  """One case: its arrays, its hyperparameters, its shape before padding."""

  name: str
  arrays: dict[str, np.ndarray]
  options: dict[str, Any]

  @functools.cached_property
  def shape(self):
    """Of the two-dimensional arrays, before padding."""
    return next(x.shape for x in self.arrays.values() if x.ndim == 2)

  def given(self, name, dtype=None):
    """An input as JAX takes it, padded with zeros to [16] or [16, 64]."""
    x = self.arrays[f'in/{name}']
    if name.endswith('mask'):
      x = x.astype(bool)
    elif x.dtype.kind == 'f':
      x = x.astype(dtype)
    return jnp.asarray(pad(x))

  def expected(self, name):
    """An output, in float64 where there is one; padded like the inputs."""
    key = f'out64/{name}'
    return pad(self.arrays[key if key in self.arrays else f'out/{name}'])

  def __contains__(self, name):
    return f'in/{name}' in self.arrays


def pad(x):
  if x.ndim == 2:
    return np.pad(x, ((0, ROWS - x.shape[0]), (0, LENGTH - x.shape[1])))
  if x.ndim == 1:
    return np.pad(x, (0, ROWS - x.shape[0]))
  return x


@pytest.fixture(scope='session')
def golden():
  """`golden(function)` is the list of its cases."""
  with np.load(GOLDEN) as file:
    meta = json.loads(str(file['meta']))
    arrays = {key: file[key] for key in file.files if key != 'meta'}

  def cases(function):
    names = sorted(n for n in meta if n.split('/')[0] == function)
    return [
      Case(
        name,
        {
          key.removeprefix(f'{name}/'): value
          for key, value in arrays.items()
          if key.startswith(f'{name}/')
        },
        meta[name],
      )
      for name in names
    ]

  return cases


def assert_close(actual, expected, relative, message):
  """Equal to `relative`, of each number or of a thousandth of the largest."""
  expected = np.asarray(expected)
  scale = np.max(np.abs(expected), initial=0)
  np.testing.assert_allclose(
    actual,
    expected,
    rtol=relative,
    atol=relative * 1e-3 * scale + 1e-30,
    err_msg=message,
  )


@pytest.fixture
def close():
  return assert_close
