# SPDX-License-Identifier: Apache-2.0
"""XLA flags for programs that run briefly: least compilation time.

XLA of JAX 0.10 compiles in half the time without fusion emitters; later versions
have no such flag and refuse it. To be imported before JAX.
"""

from importlib.metadata import version

_HAS_OLD_EMITTERS = version('jaxlib').startswith('0.10.')

# Compiler options of `jax.jit`, and the same as a value of XLA_FLAGS.
QUICK: dict[str, int | bool] = {'xla_backend_optimization_level': 0}
if _HAS_OLD_EMITTERS:
  QUICK |= {'xla_cpu_use_fusion_emitters': False}

FLAGS = ' '.join(f'--{name}={int(value)}' for name, value in QUICK.items())
