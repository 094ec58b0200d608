# SPDX-License-Identifier: Apache-2.0
"""Settings of JAX with which programs of covrl run."""

from __future__ import annotations

# Allowed values of settings of JAX, or of its environment variables. With other
# values programs of covrl end in an error while they run.
_TRANSFERS = (None, 'allow', 'log', 'log_explicit')
_ALLOWED: dict[str, tuple[object, ...]] = {
  'jax_check_tracer_leaks': (False,),
  'jax_debug_nans': (False,),
  'jax_disable_jit': (False,),
  'jax_no_execution': (False,),
  'jax_numpy_dtype_promotion': ('standard',),
  'jax_numpy_rank_promotion': ('allow', 'warn'),
  'jax_transfer_guard_device_to_device': _TRANSFERS,
  'jax_transfer_guard_device_to_host': _TRANSFERS,
  'jax_transfer_guard_host_to_device': _TRANSFERS,
}

# A run trains in at most 32 bits, and compiles its programs for that.
_ALLOWED_IN_TRAINING = {'jax_enable_x64': (False,)}


def check_settings(*, trains: bool = False) -> None:
  """Refuses settings of JAX that end programs of covrl in an error.

  Padding and masked tokens are NaN, types and ranks are promoted, and the loop
  reads metrics and writes batches without explicit transfers.

  Args:
    trains: whether the command trains.

  Raises:
    ValueError: a setting has such a value.
  """
  import jax

  settings = _ALLOWED | (_ALLOWED_IN_TRAINING if trains else {})
  for name, allowed in settings.items():
    value = getattr(jax.config, name)
    if value not in allowed:
      raise ValueError(
        f'{name.upper()} must be {" or ".join(map(str, allowed))} for programs of'
        f' covrl, got {value}'
      )
