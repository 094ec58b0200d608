# SPDX-License-Identifier: Apache-2.0
"""Chat templates: the dialect of transformers, limits, and error messages."""

import concurrent.futures
import datetime
import json
import pathlib
import subprocess
import sys
import textwrap

import pytest

from covrl.data import ChatTemplate
from covrl.data.chat import TemplateRefusal, process

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / 'tests/golden/chat_templates.json').read_text())
CHAT = [{'role': 'user', 'content': 'hello'}]
NESTED = '[' * 5000 + ']' * 5000

# Templates that take much memory, time or depth, and a part of the message.
COSTLY = {
  'a product': ('{{ "x" * 10 ** 9 }}', 'MemoryError'),
  'a constant filter': ('{{ "x" | center(10 ** 9) }}', 'MemoryError'),
  'a format': ('{{ "%1000000000d" | format(1) }}', 'MemoryError'),
  'a long text': (
    '{% for a in range(99999) %}{{ "x" * 1000 }}{% endfor %}',
    'more than 4,000,000 characters',
  ),
  'a long variable': (
    '{% set x %}{% for a in range(99999) %}{{ "x" * 10000 }}{% endfor %}'
    '{% endset %}',
    'MemoryError',
  ),
  'a recursive macro': (
    '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
    'RecursionError',
  ),
  'a recursive loop': (
    '{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}',
    'RecursionError',
  ),
  'deep lists': (f'{{{{ {NESTED} }}}}', 'RecursionError'),
  'deep blocks': ('{% if 1 %}' * 3000 + '{% endif %}' * 3000, 'RecursionError'),
  'a long range': ('{{ range(10 ** 6) | list }}', 'Range too big'),
}
# Invalid templates, and a part of the message; `None` if the text is empty instead.
BROKEN = {
  'a syntax error': ('{% if %}', 'must be jinja2 that renders, got: Expected'),
  'a missing attribute': ('{{ messages.a.b }}', "has no attribute 'a'"),
  'a division by zero': ('{{ 1 / 0 }}', 'ZeroDivisionError: division by zero'),
  'a type error': ('{{ "a" + 1 }}', 'TypeError: can only concatenate str'),
  'an included file': ('{% include "a" %}', 'TypeError: no loader'),
  'a surrogate': ('{{ "\\ud800" }}', "the lone surrogate '\\ud800'"),
  'a private attribute': ('{{ cycler.__init__ }}', None),
  'private code': ('{{ cycler.__init__.__globals__ }}', 'is unsafe'),
  'a reason of two lines': (
    '{{ raise_exception("a\nb") }}',
    'got its refusal: a b',
  ),
  'no reason': ('{{ raise_exception() }}', 'TypeError'),
  'an unknown tag': ('{% generations %}', "unknown tag 'generations'"),
}


def error_of(source, chat=CHAT):
  """The error of a template from a.jinja, in one line."""
  with pytest.raises(ValueError) as caught:
    ChatTemplate(source, file='a.jinja').render(chat)
  message = str(caught.value)
  assert message.startswith('a.jinja: ')
  assert '\n' not in message
  assert len(message) < 400
  return message


@pytest.mark.parametrize(
  'case', GOLDEN['templates'], ids=lambda case: case['name']
)
def test_templates_render_as_in_transformers(case):
  template = ChatTemplate(case['source'], GOLDEN['special_tokens'])
  chat = case.get('chat', GOLDEN['chat'])
  now = datetime.datetime.fromisoformat(GOLDEN['now'])
  if case['text'] is None:
    with pytest.raises(ValueError):
      template.render(chat, now=now, **case['variables'])
  else:
    assert template.render(chat, now=now, **case['variables']) == case['text']


@pytest.mark.parametrize('case', COSTLY)
def test_limits_memory_and_depth(case):
  source, reason = COSTLY[case]
  assert reason in error_of(source)
  # The next conversation is formatted as usual.
  assert ChatTemplate('{{ messages[0].content }}').render(CHAT) == 'hello'


@pytest.mark.parametrize(
  'source',
  [
    '{% for a in range(9999) %}' * 2 + '{% endfor %}' * 2,
    '{% set n = namespace(a=[1]) %}{% for i in range(60) %}'
    '{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}',
  ],
)
def test_limits_time(source, monkeypatch):
  monkeypatch.setattr(process, 'MAX_SECONDS', 0)
  assert 'more than 0 s of computing' in error_of(source)
  assert ChatTemplate('{{ messages[0].content }}').render(CHAT) == 'hello'


@pytest.mark.parametrize('case', BROKEN)
def test_errors_are_one_sentence_with_the_file(case):
  source, reason = BROKEN[case]
  if reason is None:
    assert ChatTemplate(source).render(CHAT) == ''
  else:
    assert reason in error_of(source)


def test_refusals_have_a_type_of_their_own():
  with pytest.raises(TemplateRefusal):
    ChatTemplate('{{ raise_exception("no") }}').render(CHAT)


def test_refuses_variables_that_are_not_json():
  for value in (b'x', object(), '\ud800'.encode('utf-16', 'surrogatepass')):
    with pytest.raises(ValueError, match='must be JSON values, got'):
      ChatTemplate('').render(CHAT, value=value)


def test_random_filters_give_equal_prompts():
  template = ChatTemplate('{{ range(1000) | random }}')
  assert template.render(CHAT) == template.render(CHAT)


def test_threads_share_the_process():
  template = ChatTemplate('{{ messages[0].content }}')

  def render(n):
    return template.render([{'role': 'user', 'content': str(n)}])

  with concurrent.futures.ThreadPoolExecutor(4) as pool:
    assert list(pool.map(render, range(100))) == [str(n) for n in range(100)]


def test_an_interrupted_exchange_does_not_answer_the_next(monkeypatch):
  template = ChatTemplate('{{ messages[0].content }}')
  template.render([{'role': 'user', 'content': 'before'}])
  exchange = process._exchange

  def interrupted(*args):
    process_, line = args
    process_.stdin.write(line)
    process_.stdin.flush()
    raise KeyboardInterrupt

  monkeypatch.setattr(process, '_exchange', interrupted)
  with pytest.raises(KeyboardInterrupt):
    template.render([{'role': 'user', 'content': 'interrupted'}])
  monkeypatch.setattr(process, '_exchange', exchange)
  assert template.render([{'role': 'user', 'content': 'after'}]) == 'after'


def test_a_killed_process_is_started_again_once(monkeypatch):
  template = ChatTemplate('{{ messages[0].content }}')
  assert template.render(CHAT) == 'hello'
  exchange = process._exchange
  kills = iter([True, False])

  def killed(process_, line):
    if next(kills, True):
      process_.kill()
      process_.wait()
    return exchange(process_, line)

  monkeypatch.setattr(process, '_exchange', killed)
  assert template.render(CHAT) == 'hello'
  with pytest.raises(ValueError, match=r'ended twice \(SIGKILL\)'):
    template.render(CHAT)
  monkeypatch.setattr(process, '_exchange', exchange)
  assert template.render(CHAT) == 'hello'


def test_the_process_ends_with_its_parent():
  program = """
    import os, signal
    from covrl.data import ChatTemplate
    from covrl.data.chat import template
    ChatTemplate('x').render([])
    print(template._process()._process.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
  """
  completed = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(program)],
    capture_output=True,
    cwd=ROOT,
    check=False,
  )
  child = pathlib.Path('/proc') / completed.stdout.decode().strip() / 'stat'
  for _ in range(100):
    # An ended process that no parent waits for stays a zombie.
    if not child.exists() or child.read_text().split()[2] == 'Z':
      return
    subprocess.run(['sleep', '0.05'], check=True)
  pytest.fail('the process must end with its parent')
