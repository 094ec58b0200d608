# SPDX-License-Identifier: Apache-2.0
"""Reference vectors, padded to one shape so that tests compile once."""

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
  """One case of reference vectors.

  Attributes:
    name: function and case.
    arrays: inputs and outputs by name.
    options: hyperparameters.
  """

  name: str
  arrays: dict[str, np.ndarray]
  options: dict[str, Any]

  @functools.cached_property
  def shape(self):
    """Shape of the two-dimensional arrays before padding."""
    return next(x.shape for x in self.arrays.values() if x.ndim == 2)

  def input(self, name, dtype=None):
    """An input as a JAX array, padded with zeros to `[16]` or `[16, 64]`."""
    x = self.arrays[f'in/{name}']
    if name.endswith('mask'):
      x = x.astype(bool)
    elif x.dtype.kind == 'f':
      x = x.astype(dtype)
    return jnp.asarray(pad(x))

  def expected(self, name):
    """An output, in float64 if available; padded like the inputs."""
    key = f'out64/{name}'
    return pad(self.arrays[key if key in self.arrays else f'out/{name}'])

  def __contains__(self, name):
    return f'in/{name}' in self.arrays


def pad(x):
  """Pads an array with zeros to `[16]` or `[16, 64]`."""
  if x.ndim == 2:
    return np.pad(x, ((0, ROWS - x.shape[0]), (0, LENGTH - x.shape[1])))
  if x.ndim == 1:
    return np.pad(x, (0, ROWS - x.shape[0]))
  return x


@pytest.fixture(scope='session')
def golden():
  """A function from the name of a loss or method to its cases."""
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
  """Asserts equality up to a relative tolerance.

  Of numbers below a thousandth of the largest, the tolerance is that of a
  thousandth of the largest.
  """
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
  """The function `assert_close`."""
  return assert_close
