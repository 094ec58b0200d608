# SPDX-License-Identifier: Apache-2.0
"""How tests compile: most of their time is compiling, of what runs for a moment.

Imported before JAX is.
"""

from importlib.metadata import version

# JAX 0.10 can emit loops in the old way, which compiles in half the time; later
# ones have no other way, and do not start where they are told of one.
_OLD_WAY = version('jaxlib').startswith('0.10.')

QUICKLY = '--xla_backend_optimization_level=0' + (
  ' --xla_cpu_use_fusion_emitters=false' if _OLD_WAY else ''
)
