# SPDX-License-Identifier: Apache-2.0
"""Makes chat_templates.json: chat templates, and their texts by transformers.

  python tests/golden/make_chat_templates.py

needs transformers (5.24) besides the dependencies of the tests. Each template
uses one part of transformers' Jinja dialect; `strftime_now` is called at `NOW`.
"""

import datetime
import importlib
import json
import pathlib

tokenizers = importlib.import_module('tokenizers')
transformers = importlib.import_module('transformers')
chat_utils = importlib.import_module('transformers.utils.chat_template_utils')

FILE = pathlib.Path(__file__).with_name('chat_templates.json')
NOW = datetime.datetime(2024, 7, 26, 13, 5)
SPECIAL = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>'}
CHAT = [
  {'role': 'system', 'content': 'Be <brief> & "kind".'},
  {'role': 'user', 'content': 'Grüße, 漢字 🙂 '},
  {'role': 'assistant', 'content': '  42\n'},
  {'role': 'user', 'content': 'Why?'},
]
REASONING = [
  {'role': 'user', 'content': 'Why?', 'name': None},
  {'role': 'assistant', 'content': 'So.', 'thinking': 'Hm.'},
]
TOOL = {
  'type': 'function',
  'function': {
    'name': 'add',
    'description': 'Adds <two> numbers',
    'parameters': {'type': 'object', 'properties': {'é': {'type': 'number'}}},
  },
}
DOCUMENT = {'title': 'T', 'text': 'x'}
LOOP = '{% for m in messages %}'
CASES = {
  'generation': (
    '{% set a = 1 %}' + LOOP + '{% if m.role == "assistant" %}'
    '{% generation %}{% set a = 2 %}[{{ m.content }}{{ a }}{{ loop.index }}]'
    '{% endgeneration %}{% else %}({{ m.role }}){% endif %}{% endfor %}{{ a }}'
  ),
  'generation_blanks': (
    LOOP + '\n  {%- if m.role == "assistant" %}\n    {%- generation %}\n'
    '    {{- m.content }}\n    {%- endgeneration %}\n  {%- endif %}\n'
    '  {% generation %}\n  a\n  {% endgeneration %}\n{% endfor %}\n'
  ),
  'tojson': '{{ messages | tojson }}',
  'tojson_ascii': '{{ messages | tojson(ensure_ascii=True) }}',
  'tojson_indent': '{{ messages | tojson(indent=2) }}',
  'tojson_separators': (
    '{{ messages | tojson(separators=(",", ":"), sort_keys=true) }}'
  ),
  'tojson_positional': '{{ messages[0] | tojson(true, 1) }}',
  'thinking_undefined': (
    '{% if enable_thinking is defined and enable_thinking is false %}'
    '<think></think>{% else %}{{ enable_thinking }}|{% endif %}'
  ),
  'thinking': (
    '{% if enable_thinking is defined and enable_thinking is false %}'
    '<think></think>{% endif %}{{ effort }}',
    {'enable_thinking': False, 'effort': 'low'},
  ),
  'date': '{{ strftime_now("%d %B %Y %H:%M") }}{{ date_string }}',
  'date_string': (
    '{% if not date_string is defined %}{% set date_string = '
    'strftime_now("%d %b %Y") %}{% endif %}{{ date_string }}',
    {'date_string': '1 Jan 2000'},
  ),
  'has_date': '{% if strftime_now is defined %}{{ strftime_now("%Y") }}{% endif %}',
  'refusal': '{{ raise_exception("No role " + messages[0].role) }}',
  'break': LOOP + '{% if loop.index == 3 %}{% break %}{% endif %}.{% endfor %}',
  'continue': (
    LOOP + '{%- if m.role == "user" %}{% continue %}{% endif %}'
    '{{ m.role }}{{ loop.last }}{% endfor %}'
  ),
  'no_tools': (
    '{% if tools is not none %}tools{% endif %}{{ tools is defined }}'
    '{% if documents == none %}none{% endif %}'
  ),
  'tools': (
    '{% for tool in tools %}{{ tool | tojson(indent=4) }}'
    '{{ tool.function.parameters | tojson }}{% endfor %}'
    '{% for d in documents %}{{ d.title }}:{{ d["text"] }}{% endfor %}',
    {'tools': [TOOL], 'documents': [DOCUMENT]},
  ),
  'special_tokens': (
    '{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}'
    '{{ bos_token is defined }}{{ unk_token is defined }}'
  ),
  'variables_first': ('{{ bos_token }}', {'bos_token': '<b>'}),
  'namespace': (
    '{% set ns = namespace(n=0, s="") %}' + LOOP + '{% set ns.n = ns.n + 1 %}'
    '{% set ns.s = ns.s ~ m.role[0] %}{% endfor %}{{ ns.n }}{{ ns.s }}'
  ),
  'blanks': (
    '\n' + LOOP + '\n    {% if loop.first %}\n  first\n    {% endif %}\n'
    '{{ m.role }}\n{% endfor %}\n\n'
  ),
  'comment': '{# a #}\n  {# b #}\nc\n{#- d -#}\n e\n',
  'macro': (
    '{% macro f(x, y=2) %}<{{ x }}{{ y }}{{ caller() if caller }}>{% endmacro %}'
    '{{ f(1) }}{% call f(3) %}in{% endcall %}'
  ),
  'strings': (
    '{{ messages[1].content.strip().split(",")[-1].upper() }}'
    '{{ messages[2]["content"] | trim }}{{ "a-b".replace("-", "+") }}'
    '{{ "abc".startswith("a") }}{{ "%03d" | format(7) }}{{ "%s" % "x" }}'
  ),
  'lists': (
    '{% for m in messages[::-1] %}{{ m.role }},{% endfor %}'
    '{{ messages | selectattr("role", "equalto", "user") | map('
    'attribute="content") | join("|") }}{{ messages | length }}'
    '{{ (messages | last).content }}{{ messages[-1].missing }}'
  ),
  'objects': (
    '{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}'
    '{{ {"a": [1, 2.0, none, true]} }}{{ messages[0] is mapping }}'
    '{{ "x" is string }}{{ messages is iterable }}{{ dict(a=1) }}'
  ),
  'escapes': '{{ "<a href=\'x\'>&" }}{{ messages[0].content | e }}',
  'loop': (
    LOOP + '{{ loop.index0 }}{{ loop.revindex }}{{ loop.cycle("a", "b") }}'
    '{{ loop.previtem.role if loop.previtem }}{% else %}none{% endfor %}'
  ),
  'generation_prompt': (
    LOOP + '{{ m.role }}{% endfor %}{% if add_generation_prompt %}>{% endif %}'
  ),
  'immutable': '{{ messages.append(1) }}',
  'private': '{{ messages.__class__ }}',
  'undefined': '{{ messages[0].a.b }}',
  'not_a_filter': '{{ 1 | nope }}',
  'type_error': '{{ "a" + 1 }}',
}
CASES_WITH_MESSAGES = {
  'reasoning': (
    '{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }}'
    '{{ m.name is defined }}{% endfor %}',
    REASONING,
  ),
}


class Clock(datetime.datetime):
  """A datetime that is always `NOW`."""

  @classmethod
  def now(cls, tz=None):
    return NOW


def main():
  """Writes the file."""
  vars(chat_utils)['datetime'] = Clock
  words = tokenizers.models.WordLevel({'a': 0}, unk_token='a')
  tokenizer = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(words), **SPECIAL
  )
  cases = [
    (name, case if isinstance(case, tuple) else (case, {}), CHAT)
    for name, case in CASES.items()
  ]
  cases += [
    (n, (source, {}), chat) for n, (source, chat) in CASES_WITH_MESSAGES.items()
  ]
  templates = []
  for name, (source, variables), chat in cases:
    try:
      text = tokenizer.apply_chat_template(
        chat,
        chat_template=source,
        tokenize=False,
        add_generation_prompt=True,
        **variables,
      )
    except Exception:
      text = None
    case = {'name': name, 'source': source, 'variables': variables}
    templates.append(
      case | {'text': text} | ({} if chat is CHAT else {'chat': chat})
    )
  content = {
    'chat': CHAT,
    'special_tokens': SPECIAL,
    'now': NOW.isoformat(),
    'templates': templates,
  }
  FILE.write_text(json.dumps(content, ensure_ascii=False, indent=1) + '\n')


if __name__ == '__main__':
  main()
