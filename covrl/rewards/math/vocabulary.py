# SPDX-License-Identifier: Apache-2.0
"""Commands and words of answers, by grammatical role."""

from __future__ import annotations


def _commands(names: str) -> frozenset[str]:
  return frozenset(f'\\{name}' for name in names.split())


SYMBOLS = _commands("""
  alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi
  omicron pi rho sigma tau upsilon phi chi psi omega Gamma Delta Theta Lambda Xi
  Pi Sigma Upsilon Phi Psi Omega ell ldots angle triangle square measuredangle
  hbar nabla partial aleph star top bot circ bullet
""")
FUNCTIONS = _commands("""
  sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh coth ln log
  lg exp max min gcd lcm Re Im arg det
""")
DECORATIONS = _commands("""
  vec hat bar tilde dot ddot mathbf boldsymbol bm mathcal mathbb mathfrak mathscr
  overline widehat widetilde overrightarrow overarc
""")
# Other commands that begin a factor.
CONSTRUCTS = _commands('frac sqrt binom infty lfloor lceil begin emptyset $')
RELATIONS = {
  **{sign: sign for sign in '=<>'},
  **{
    command: command[1:]
    for command in _commands("""
      le ge ne in notin equiv subset subseteq sim cong to parallel perp mapsto
    """)
  },
  '\\approx': '=',
  '\\doteq': '=',
  '\\rightarrow': 'to',
}
SET_OPERATORS = {
  '\\cup': 'union',
  '\\cap': 'intersection',
  '\\setminus': 'difference',
}
MATRICES = {'matrix', 'pmatrix', 'bmatrix', 'Bmatrix', 'smallmatrix', 'array'}

# Words without a backslash.
NAMES = {
  **{
    command[1:]: command
    for command in _commands("""
      sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log exp max
      min gcd lcm sqrt pi theta infty
    """)
  },
  'inf': '\\infty',
  'infinity': '\\infty',
  'oo': '\\infty',
}
SEPARATORS = {'and': 'and', 'or': 'or', 'where': ',', 'if': ',', 'for': ','}
SHORT_WORDS = frozenset(
  command[1:]
  for command in _commands("""
    yes no not odd red one two six ten all any none her his its day the is am pm
  """)
)
