# SPDX-License-Identifier: Apache-2.0
"""How what runs for a moment is compiled: in as little time as possible.

JAX 0.10 can emit loops in an old way, which takes half the time to compile; later
ones have no other way, and do not start where they are told of one. Imported
before JAX is.
"""

from importlib.metadata import version

_OLD_WAY = version('jaxlib').startswith('0.10.')

QUICK: dict[str, int | bool] = {'xla_backend_optimization_level': 0}
if _OLD_WAY:
  QUICK |= {'xla_cpu_use_fusion_emitters': False}

FLAGS = ' '.join(f'--{name}={int(value)}' for name, value in QUICK.items())
