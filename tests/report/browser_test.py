# SPDX-License-Identifier: Apache-2.0
"""Tests of the pages in a browser: errors, content, tooltips, width."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib

import pytest

from covrl.report import write_comparison, write_report

CHROMIUM = shutil.which('chromium')

pytestmark = pytest.mark.skipif(
  CHROMIUM is None, reason='needs chromium on PATH; .ci/run installs it'
)

# Script that moves the pointer over every figure and reads sizes.
PROBE = """
<script>
function probe(frame) {
  const page = frame.contentDocument;
  const tips = [...page.querySelectorAll('.frame:not(.still) svg.plot')].map(
    (svg) => {
      const box = svg.getBoundingClientRect();
      svg.dispatchEvent(new frame.contentWindow.PointerEvent('pointermove', {
        clientX: box.left + box.width / 2, clientY: box.top + 40,
      }));
      const tip = page.getElementById('tip');
      return tip.hidden ? '' : tip.textContent;
    });
  const root = page.documentElement;
  document.getElementById('found').textContent = JSON.stringify(
    {tips, width: root.clientWidth, needed: root.scrollWidth});
}
</script>
<pre id="found"></pre>
<iframe src="PAGE" width="390" height="800" onload="probe(this)"></iframe>
"""


def chromium(tmp_path, *arguments) -> subprocess.CompletedProcess:
  """Runs a headless browser; fails if a page logs an error to the console."""
  completed = subprocess.run(
    [
      str(CHROMIUM),
      *('--headless=new', '--no-sandbox', '--disable-gpu'),
      *('--enable-logging=stderr', '--allow-file-access-from-files'),
      f'--user-data-dir={tmp_path / "profile"}',
      *arguments,
    ],
    capture_output=True,
    text=True,
    timeout=120,
    check=True,
  )
  messages = [
    line for line in completed.stderr.splitlines() if 'CONSOLE' in line
  ]
  assert not messages
  return completed


def nonblank_fraction(png: bytes) -> float:
  """Fraction of bytes of a PNG that differ from their neighbour."""
  data, offset = b'', 8
  while offset < len(png):
    size, kind = struct.unpack('>I4s', png[offset : offset + 8])
    if kind == b'IDAT':
      data += png[offset + 8 : offset + 8 + size]
    offset += 12 + size
  rows = zlib.decompress(data)
  return 1 - rows.count(0) / len(rows)


def probe(tmp_path, page) -> dict:
  """Texts of the tooltips of a page, and its width on a phone."""
  probe_page = tmp_path / 'probe.html'
  probe_page.write_text(PROBE.replace('PAGE', page.as_uri()))
  completed = chromium(tmp_path, '--dump-dom', probe_page.as_uri())
  match = re.search(r'<pre id="found">(.*?)</pre>', completed.stdout)
  assert match is not None
  return json.loads(match[1])


def test_report_has_no_errors_and_is_not_blank(make_run, tmp_path):
  page = write_report(make_run(iterations=20, problems=20))
  picture = tmp_path / 'page.png'
  chromium(
    tmp_path,
    f'--screenshot={picture}',
    '--window-size=1200,1600',
    f'file://{page}',
  )
  assert nonblank_fraction(picture.read_bytes()) > 0.02


def test_tooltips_have_numbers_and_page_fits_a_phone(make_run, tmp_path):
  run = make_run(iterations=20, problems=20)
  write_report(run)
  result = probe(tmp_path, run / 'report.html')
  assert result['needed'] <= result['width'] <= 390
  assert len(result['tips']) == 18
  assert all(re.search(r'(iteration|step) [\d,]+', t) for t in result['tips'])
  assert 'mean@8' in result['tips'][0]


def test_comparison_has_no_errors_and_fits_a_phone(make_run, tmp_path):
  names = ('countdown_grpo', 'countdown_a_rather_long_name_for_a_configuration')
  runs = [
    make_run(f'{name}{seed}', name=name, seed=seed, iterations=20, problems=20)
    for name in names
    for seed in (1, 2)
  ]
  write_comparison(runs, tmp_path / 'page.html')
  result = probe(tmp_path, tmp_path / 'page.html')
  assert result['needed'] <= result['width'] <= 390
  assert len(result['tips']) == 6
  assert all('iteration' in tip for tip in result['tips'])


def test_script_errors_are_detected(tmp_path):
  page = tmp_path / 'broken.html'
  page.write_text('<script>absent()</script>')
  with pytest.raises(AssertionError, match='absent is not defined'):
    chromium(tmp_path, '--dump-dom', page.as_uri())
