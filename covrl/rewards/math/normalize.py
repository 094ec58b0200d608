# SPDX-License-Identifier: Apache-2.0
"""Normalization of the typography of answers, without changing their meaning.

`normalize_tex` reduces TeX to few commands; `without_spaces` gives a form that can
be compared as text.
"""

from __future__ import annotations

import re
import unicodedata

_SUPERSCRIPTS = str.maketrans('⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ', '0123456789+-n')
_SUBSCRIPTS = str.maketrans('₀₁₂₃₄₅₆₇₈₉', '0123456789')
# In the order of their code points, which begin at that of α.
_GREEK = """
alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron
pi rho sigmaf sigma tau upsilon phi chi psi omega
"""
_SYMBOLS = {
  **{'−': '-', '–': '-', '—': '-', '‐': '-', '‑': '-', '⁄': '/', '∕': '/'},
  **{'×': r'\times ', '÷': r'\div ', '·': r'\cdot ', '⋅': r'\cdot '},
  **{'∙': r'\cdot ', '∗': '*', '√': r'\sqrt ', '∞': r'\infty '},
  **{'≤': r'\le ', '≥': r'\ge ', '≠': r'\ne ', '≈': r'\approx '},
  **{'±': r'\pm ', '∓': r'\mp ', '°': r'^\circ ', '∪': r'\cup '},
  **{'∩': r'\cap ', '∈': r'\in ', '∅': r'\emptyset ', 'ℝ': r'\mathbb{R}'},
  **{'ℤ': r'\mathbb{Z}', 'ℚ': r'\mathbb{Q}', 'ℕ': r'\mathbb{N}'},
  **{'ℂ': r'\mathbb{C}', '∖': r'\setminus ', '…': r'\ldots ', '⋯': r'\ldots '},
  **{'⟨': '(', '⟩': ')', '’': "'", '′': "'", '‘': "'", '∠': r'\angle '},
  **{'△': r'\triangle ', '“': '', '”': '', '"': '', '→': r'\to '},
  **{'⌊': r'\lfloor ', '⌋': r'\rfloor ', '⌈': r'\lceil ', '⌉': r'\rceil '},
  **{
    chr(ord('α') + index): f'\\{name} '
    for index, name in enumerate(_GREEK.split())
  },
}
_UNICODE = re.compile(f'[{re.escape("".join(_SYMBOLS))}]')

# Applied in this order. A command must not be followed by a letter; \b does not
# express that, as in \sqrt_2.
_REWRITES = [
  (re.compile(pattern), replacement)
  for pattern, replacement in (
    # Optional arguments of row ends, and math delimiters, are dropped.
    (r'\\\\\s*\[[^\]]*\]', r'\\\\ '),
    (r'(?<!\\)\\[()\[\]]', ' '),
    (r'(?<!\\)\$', ' '),
    # A space or a comma within a number.
    (r'(?<=\d)(?:\{,\}|\\,|\\!|\\:|\\;|,\\!)(?=\d{3}(?!\d))', ''),
    (r'\{,\}', ','),
    (r'\\(?:left|right|middle)(?![a-zA-Z])\s*\.', ' '),
    (r'\\(?:left|right|middle)(?![a-zA-Z])', ' '),
    (r'\\[bB]igg?[lrm]?(?![a-zA-Z])', ' '),
    (r'(?<!\\)\\[,;:! ]|(?<!\\)~|&nbsp;', ' '),
    (r'\\(?:q?quad|thinspace|enspace|displaystyle|textstyle)(?![a-zA-Z])', ' '),
    (
      r'\\(?:tiny|small|normalsize|large|Large|LARGE|huge|Huge)(?![a-zA-Z])',
      ' ',
    ),
    (r'\\(?:scriptstyle|limits|nolimits|rm|bf|it|sf)(?![a-zA-Z])', ' '),
    (r'\\(?:[hv]space|phantom|label|tag|color)\*?\s*\{[^{}]*\}', ' '),
    (r'\\textcolor\s*\{[^{}]*\}', ' '),
    (r'\\(?:boxed|fbox|underline|ensuremath)(?![a-zA-Z])', ' '),
    (r'\\[dtc]frac(?![a-zA-Z])', r'\\frac '),
    (r'\\[dt]binom(?![a-zA-Z])', r'\\binom '),
    (r'\\(?:le|leq|leqslant|leqq)(?![a-zA-Z])', r'\\le '),
    (r'\\(?:ge|geq|geqslant|geqq)(?![a-zA-Z])', r'\\ge '),
    (r'\\(?:ne|neq)(?![a-zA-Z])|\\not\s*=', r'\\ne '),
    (r'<=|=<', r'\\le '),
    (r'>=', r'\\ge '),
    (r'\s!=', r'\\ne '),
    (r'\\(?:lt|textless)(?![a-zA-Z])', '<'),
    (r'\\(?:gt|textgreater)(?![a-zA-Z])', '>'),
    (r'\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])', '|'),
    (r'\\(?:langle|lparen)(?![a-zA-Z])', '('),
    (r'\\(?:rangle|rparen)(?![a-zA-Z])', ')'),
    (r'\\lbrace(?![a-zA-Z])', r'\\{'),
    (r'\\rbrace(?![a-zA-Z])', r'\\}'),
    (r'\\lbrack(?![a-zA-Z])', '['),
    (r'\\rbrack(?![a-zA-Z])', ']'),
    (r'\\colon(?![a-zA-Z])', ':'),
    (r'\\(?:varnothing|O)(?![a-zA-Z])', r'\\emptyset '),
    (r'\\(?:backslash|smallsetminus)(?![a-zA-Z])', r'\\setminus '),
    (r'\\(?:bigcup)(?![a-zA-Z])', r'\\cup '),
    (r'\\(?:dots|dotsc|cdots|dotso|dotsb)(?![a-zA-Z])', r'\\ldots '),
    (r'\\(?:lor|vee)(?![a-zA-Z])', r'\\text{or}'),
    (r'\\(?:land|wedge)(?![a-zA-Z])', r'\\text{and}'),
    (r'\\(?:degree|textdegree)(?![a-zA-Z])', r'^\\circ '),
    (r'\^\s*\{\s*\\circ\s*\}', r'^\\circ '),
    (
      r'\(\s*(?:\\b?mod|\\text\s*\{\s*mod\s*\}|mod)\s*(\w+)\s*\)',
      r'\\pmod{\1}',
    ),
    (r'\\(?:bmod|mod|pmod)(?![a-zA-Z])', r'\\pmod '),
    (r'\\(?:imath|jmath)(?![a-zA-Z])', 'i'),
    (r'\\(?:var)(epsilon|theta|phi|rho|sigma|pi|kappa)(?![a-zA-Z])', r'\\\1 '),
    (r'\\(?:pounds|textsterling)(?![a-zA-Z])', '£'),
    (r'(?<!\\)%', r'\\%'),
    # Single letters in another font are symbols, several are a word.
    (
      r'\\(?:mathrm|mathsf|mathtt|mathit|mathnormal)\s*\{\s*([a-zA-Z])\s*\}',
      r' \1 ',
    ),
    (r'\\(?:mathrm|mathsf|mathtt|mathit|mathnormal)\s*(?=\{)', r'\\text'),
    (r'\\(?:textbf|textit|textrm|textnormal|textup)\s*(?=\{)', r'\\text'),
    (r'\\(?:textsf|texttt|emph|mbox|hbox)\s*(?=\{)', r'\\text'),
    (r'\\text\s+(?=\{)', r'\\text'),
    # A text without a word is not a text.
    (r'\\text\{([^a-zA-Z{}]*)\}', r' \1 '),
    # A number at the start of a text, as in \text{5 cm}, is moved out of it.
    (r'\\text\{\s*([-+\d.,/]*\d)\s*([^{}]*)\}', r' \1\\text{\2}'),
  )
]
_SPACES = re.compile(r'\s+')
_ENDS = ' \t\n.,;:'
# Spaces that do not separate words or numbers.
_LOOSE = re.compile(r'(?<![a-zA-Z0-9])\s+|\s+(?![a-zA-Z0-9])')


def normalize_tex(text: str) -> str:
  r"""Returns TeX in a uniform spelling, without spacing, sizes and math marks.

  >>> normalize_tex(r'$\left( \dfrac{1}{2},\; 3 \right]$.')
  '( \\frac {1}{2}, 3 ]'
  """
  text = _unicode(text.strip().strip('*').strip())
  for pattern, replacement in _REWRITES:
    text = pattern.sub(replacement, text)
  text = _SPACES.sub(' ', text).strip()
  # A trailing full stop or row end is not part of the answer.
  text = text.rstrip(_ENDS)
  while text.endswith('\\\\'):
    text = text[:-2].rstrip().rstrip(_ENDS)
  return text.lstrip(_ENDS.replace('.', ''))


def without_spaces(cleaned: str) -> str:
  r"""Removes spaces that do not matter from normalized TeX.

  >>> without_spaces(r'( \frac {1}{2}, 3 ]')
  '(\\frac{1}{2},3]'
  """
  return _LOOSE.sub('', cleaned)


def _unicode(text: str) -> str:
  """Replaces non-ASCII characters by TeX, or by compatibility forms."""
  if text.isascii():
    return text.replace('"', '')
  text = re.sub(
    '[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+',
    lambda m: f'^{{{m.group().translate(_SUPERSCRIPTS)}}}',
    text,
  )
  text = re.sub(
    '[₀-₉]+', lambda m: f'_{{{m.group().translate(_SUBSCRIPTS)}}}', text
  )
  text = re.sub('[¼-¾⅐-⅞]', _unicode_fraction, text)
  text = _UNICODE.sub(lambda match: _SYMBOLS[match.group()], text)
  text = unicodedata.normalize('NFKC', text)
  return _UNICODE.sub(lambda match: _SYMBOLS[match.group()], text)


def _unicode_fraction(match: re.Match[str]) -> str:
  top, _, bottom = unicodedata.normalize('NFKC', match.group()).partition('⁄')
  return f'\\frac{{{top}}}{{{bottom}}}'
