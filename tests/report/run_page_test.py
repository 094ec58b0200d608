# SPDX-License-Identifier: Apache-2.0
"""Tests of the page of one run: valid, small, offline, escaped, robust."""

from __future__ import annotations

import html.parser
import json
import re

import pytest

from covrl.report import write_report

# HTML and SVG elements without an end tag.
VOID_TAGS = {'meta', 'br', 'link', 'img', 'hr', 'input', 'path', 'circle'}


class Page(html.parser.HTMLParser):
  """Parser that collects tags and text, and fails on unbalanced tags."""

  def __init__(self, text: str):
    super().__init__()
    self.open: list[str] = []
    self.tags: list[tuple[str, dict[str, str | None]]] = []
    self.words: list[str] = []
    self.feed(text)
    self.close()
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID_TAGS:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    if self.open and self.open[-1] not in ('style', 'script'):
      self.words.append(data)

  @property
  def text(self) -> str:
    return re.sub(r'\s+', ' ', ' '.join(self.words))

  def count(self, tag: str, **attributes: str) -> int:
    """Number of tags with the given attributes."""
    return sum(
      name == tag and attributes.items() <= tag_attributes.items()
      for name, tag_attributes in self.tags
    )


def read(path) -> Page:
  """The parsed page in a file."""
  return Page(path.read_text())


def test_page_of_a_finished_run_has_every_part(make_run):
  page = read(write_report(make_run()))
  for words in (
    'mean@8: ',
    'nats per token',
    'rare tokens in wrong answers (',
    'Held-out problems solved',
    'Largest covariances',
    'Sampler against trainer',
    'Warm start',
    'train.learning_rate',
  ):
    assert words in page.text
  assert page.count('figure') == 19
  assert page.count('svg', role='img') == page.count('desc') == 18


def test_page_works_offline_and_is_small(make_run):
  path = write_report(make_run(iterations=200))
  content = path.read_text()
  assert len(content.encode()) < 400_000
  assert 'http:' not in content
  assert 'https:' not in content
  for tag, attributes in read(path).tags:
    assert 'src' not in attributes, tag
    assert (attributes.get('href') or '#').startswith('#'), tag
  assert '@import' not in content
  assert 'url(' not in content


def test_curves_of_long_runs_are_averages_of_iterations(make_run):
  run = make_run(finished_iterations=0)
  lines = [
    json.dumps({'phase': 'train', 'step': i, 'iteration': i, 'reward': 0.5})
    for i in range(20_000)
  ]
  with (run / 'metrics.jsonl').open('a') as stream:
    stream.write('\n'.join(lines))
  assert len(write_report(run).read_text()) < 100_000


def test_text_of_a_run_is_escaped(make_run):
  run = make_run(iterations=10, source='"</pre><script>alert(1)</script>\n"')
  path = run / 'rollouts' / 'iteration_000000.json'
  content = json.loads(path.read_text())
  content['samples'][0]['prompt'] = '<script>alert(2)</script>'
  content['samples'][0]['tokens'][0] = '<img src=x onerror=alert(3)>'
  content['samples'][0]['selected'] = [True] * 20
  path.write_text(json.dumps(content))
  page = read(write_report(run))
  assert '<script>alert(2)</script>' in page.text
  assert '<img src=x onerror=alert(3)>' in page.text
  assert page.count('img') == 0
  assert page.count('script') == 1 + page.count('div', **{'class': 'frame'})


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    ('', '0 of the warm start, 0 of training'),
    (
      '{"phase": "warm_start", "step": 5, "loss": 2.0}\n',
      '1 of the warm start',
    ),
    ('{"phase": "train", "step": 1, "iteration": 1}\n', '1 of training'),
    (
      '{"phase": "eval", "mean@8": 0.25, "iteration": 0}\n',
      'at the only evaluation so far',
    ),
    ('{"phase": "eval", "mean@8": null}\n', 'No accuracy in any evaluation'),
    ('{"phase": "train", "reward": NaN, "entropy": "x"}', '1 of training'),
    ('{"phase": "tra', '1 unreadable line of metrics.jsonl was skipped'),
    ('[1]\n3\n', '2 unreadable lines of metrics.jsonl were skipped'),
  ],
)
def test_new_and_broken_runs_have_a_page(tmp_path, content, words):
  (tmp_path / 'metrics.jsonl').write_text(content)
  assert words in read(write_report(tmp_path)).text


@pytest.mark.parametrize(
  ('value', 'figures'),
  [(0.0, 4), (0.5, 5), (1.0, 5), (-2.0, 2), (1e-9, 5), (1e12, 4)],
)
def test_constant_numbers_can_be_drawn(tmp_path, value, figures):
  fields = ('reward', 'entropy', 'covariance', 'sampler_gap', 'gradient_norm')
  line = dict.fromkeys(fields, value) | {'phase': 'train', 'iteration': 1}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(line))
  page = read(write_report(tmp_path))
  # No run has negative entropies or norms, or 10¹² nats.
  assert page.count('svg', role='img') == figures


def test_incomplete_files_are_skipped(make_run):
  run = make_run(iterations=20)
  (run / 'config.json').write_text('{"config": {"se')
  (run / 'rollouts' / 'iteration_000010.json').write_text('{"samples": [{')
  (run / 'evaluation' / 'iteration_000020.jsonl').write_text('[')
  page = read(write_report(run))
  assert 'unpaired, from the standard errors' in page.text
  assert 'Iteration 0' in page.text


def test_selected_tokens_are_marked(make_run):
  run = make_run(iterations=10)
  samples = json.loads((run / 'rollouts/iteration_000000.json').read_text())
  chosen = sum(sum(sample['selected']) for sample in samples['samples'])
  marked = [
    attributes
    for tag, attributes in read(write_report(run)).tags
    if tag == 'span' and 'chosen' in (attributes.get('class') or '')
  ]
  assert len(marked) == chosen > 0
  assert all('selected' in (attributes['title'] or '') for attributes in marked)


def test_writing_again_replaces_the_page(make_run):
  run = make_run(iterations=10)
  first = write_report(run).read_text()
  assert write_report(run).read_text() == first
  assert not list(run.glob('.*.tmp'))
