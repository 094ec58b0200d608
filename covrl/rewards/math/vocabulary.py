# SPDX-License-Identifier: Apache-2.0
"""Commands and words of answers, by grammatical role."""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
  return frozenset(text.split())


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
  lg exp max min gcd lcm Re Im arg det cis arcsinh arccosh arctanh arcsec arccsc
""")
# Other names of functions, with a backslash or as an operator.
ALIASES = {
  'tg': '\\tan',
  'ctg': '\\cot',
  'cotg': '\\cot',
  'cotan': '\\cot',
  'cosec': '\\csc',
  'arctg': '\\arctan',
  'arcctg': '\\arccot',
  'asin': '\\arcsin',
  'acos': '\\arccos',
  'atan': '\\arctan',
  'arsinh': '\\arcsinh',
  'arcosh': '\\arccosh',
  'artanh': '\\arctanh',
  'sh': '\\sinh',
  'ch': '\\cosh',
  'th': '\\tanh',
  'Arg': '\\arg',
  'mod': '\\pmod',
}
DECORATIONS = _commands("""
  vec hat bar tilde dot ddot mathbf boldsymbol bm mathcal mathbb mathfrak mathscr
  overline widehat widetilde overrightarrow overarc
""")
# Other commands that begin a factor.
CONSTRUCTS = _commands(
  'frac sqrt binom infty lfloor lceil begin emptyset $ based'
)
RELATIONS = {
  **{sign: sign for sign in '=<>'},
  **{
    command: command[1:]
    for command in _commands("""
      le ge ne in notin equiv subset subseteq sim cong to parallel perp mapsto
    """)
  },
  **dict.fromkeys(('\\approx', '\\doteq', '\\simeq'), 'approx'),
  '\\rightarrow': 'to',
}
# Words that may follow a degree sign, and the scale that they name.
TEMPERATURES = {
  **dict.fromkeys(('c', 'celsius', 'centigrade'), 'celsius'),
  **dict.fromkeys(('f', 'fahrenheit'), 'fahrenheit'),
}
SET_OPERATORS = {
  '\\cup': 'union',
  '\\cap': 'intersection',
  '\\setminus': 'difference',
}
MATRICES = {
  *('matrix', 'pmatrix', 'bmatrix', 'Bmatrix', 'smallmatrix', 'psmallmatrix'),
  *('bsmallmatrix', 'array'),
}
DETERMINANTS = {'vmatrix', 'vsmallmatrix'}

# Words without a backslash.
COMMAND_WORDS = {
  **{
    command[1:]: command
    for command in _commands("""
      sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log
      exp max min gcd lcm sqrt pi theta infty cis
    """)
  },
  **{name: ALIASES[name] for name in ALIASES if len(name) > 2 or name == 'tg'},
  'inf': '\\infty',
  'infinity': '\\infty',
  'oo': '\\infty',
}
# Functions that may be set as text, where `min` and `sec` are units.
TEXT_FUNCTIONS = {
  name: command
  for name, command in COMMAND_WORDS.items()
  if command in FUNCTIONS and name not in ('min', 'sec')
}
SEPARATORS = {
  **dict.fromkeys(('and', '和', '与', '且', '及', '以及', 'и'), 'and'),
  **dict.fromkeys(('or', '或', '或者', '或是', 'или'), 'or'),
  **dict.fromkeys(
    ('where', 'if', 'for', 'with', 'when', 'such that', '、'), ','
  ),
}
# Words of two to four letters; other short texts are products of letters.
SHORT_WORDS = _words("""
  yes no not odd red one two six ten all any none her his its day the is am pm
""")
