# SPDX-License-Identifier: Apache-2.0
"""Divisors and multiples, for errors that name the nearest valid values."""

from collections.abc import Iterable, Sequence

from covrl.config.errors import ConfigError


def nearest(values: Iterable[int], target: int) -> list[int]:
  """Returns the nearest value on each side of `target`, ascending.

  >>> nearest([1, 2, 4, 8], 3), nearest([1, 2, 4], 8)
  ([2, 4], [4])
  """
  candidates = set(values)
  below = [value for value in candidates if value < target]
  above = [value for value in candidates if value > target]
  result = candidates & {target}
  result |= {max(below)} if below else set()
  return sorted(result | ({min(above)} if above else set()))


def divisors(total: int) -> list[int]:
  """Returns the divisors of a positive number, ascending.

  >>> divisors(12)
  [1, 2, 3, 4, 6, 12]
  """
  small = [d for d in range(1, int(total**0.5) + 1) if total % d == 0]
  return sorted({*small, *(total // d for d in small)})


def multiples(divisor: int, target: int) -> list[int]:
  """Returns the multiples of `divisor` around `target`, from `divisor` on.

  >>> multiples(8, 12), multiples(8, 3)
  ([8, 16], [8])
  """
  below = target // divisor * divisor
  return [size for size in (below, below + divisor) if size > 0]


def divisor_hint(name: str, values: Sequence[int]) -> str:
  """Returns the end of an error: the values of `name` that would work.

  >>> divisor_hint('micro_batches', [2, 4]), divisor_hint('rows', [])
  ('; nearest possible: micro_batches = 2 or 4', '')
  """
  if not values:
    return ''
  return f'; nearest possible: {name} = {" or ".join(map(str, values))}'


def check_divides(total: int, divisor: int, total_name: str, name: str) -> None:
  """Checks that `divisor`, the value of the field `name`, divides `total`.

  Raises:
    ConfigError: it does not; the message names the nearest values that do.
  """
  if total % divisor:
    raise ConfigError(
      f'{total_name} must be a multiple of {name}, got {total} and {divisor}'
      f'{divisor_hint(name, nearest(divisors(total), divisor))}'
    )
