# SPDX-License-Identifier: Apache-2.0
"""Every claim is as recorded, and a wrong formula is seen."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from theory_checks import QUICK, check, is_study

from covrl import cli
from covrl.theory import command
from covrl.theory.claims import Evidence, Result, Section, above, below, near
from covrl.theory.table import CLAIMS, named


def named_ones(claims):
  return pytest.mark.parametrize('claim', claims, ids=lambda claim: claim.name)


@named_ones([claim for claim in CLAIMS if not is_study(claim)])
def test_a_claim_is_as_recorded_and_a_wrong_formula_is_seen(claim):
  check(claim)


def test_every_numbered_statement_is_in_the_table_in_order():
  numbers = [
    int(word.strip('()'))
    for claim in CLAIMS
    for word in claim.name.replace('–', ' ').split()
    if word.startswith('(') and word.strip('()').isdigit()
  ]
  assert numbers == sorted(numbers)
  # The tables of claims whose names span equations: (11)–(12), (23)–(25).
  assert set(range(1, 35)) - set(numbers) == {24}
  statements = (
    *('Lemma IV.1', 'Lemma IV.2', 'Prop. IV.1', 'Thm IV.1', 'Remark IV.1'),
    *('Prop. V.1', 'Thm V.1', 'Thm V.2', 'Cor. V.1'),
    *('Def. VI.1', 'Def. VI.2', 'Prop. VI.1', 'Def. VI.3'),
    *('Thm VI.1', 'Thm VI.2', 'Def. VII.1', 'Thm VII.1', 'Assumption VII.1'),
    *('Thm VII.2', 'Thm VII.3', 'Remark VII.1', 'Def. VII.2', 'Thm VII.4'),
    *('Prop. VII.1', 'VIII.C', 'guideline 1', 'guideline 2', 'guideline 3'),
  )
  for statement in statements:
    assert [claim for claim in CLAIMS if statement in claim.name], statement


def test_every_claim_is_found_by_its_name_and_by_its_number():
  for claim in CLAIMS:
    assert claim in named(claim.name)
    number = re.search(r'\(\d+\)', claim.name)
    if number:
      assert claim in named(number[0])
      assert claim in named(number[0].strip('()'))


def test_a_verdict_that_was_recorded_wrongly_is_seen():
  (claim,) = named('(7)')
  assert not dataclasses.replace(claim, verdict='fails').run(QUICK).agrees
  (claim,) = named('(9)')
  assert not dataclasses.replace(claim, verdict='holds').run(QUICK).agrees
  with pytest.raises(ValueError, match="'holds', 'fails' or"):
    dataclasses.replace(claim, verdict='probably')


def test_a_condition_must_be_checked_and_fails_the_verdict_if_it_fails():
  (claim,) = named('(9)')
  with pytest.raises(ValueError, match='needs checks under its condition'):
    Result(claim, Evidence(printed=[below('x', 1.0, 0.0)]))
  unmet = Evidence(printed=[below('x', 1.0, 0.0)], given=[below('x', 1.0, 0.0)])
  assert Result(claim, unmet).measured == 'fails'
  assert not Result(claim, unmet).agrees


def test_claims_run_in_64_bits_and_leave_no_trace():
  seen = []
  section = Section('a section')

  @section.claim(
    'A', printed='', holds='', verdict='holds', formula=lambda x: x
  )
  def wide(lab, formula):
    seen.append(jnp.ones(()).dtype)
    return Evidence(printed=[near('x', formula(1.0), 1.0, 0.01)])

  assert wide.run(QUICK).agrees
  assert seen == [np.float64]
  assert jnp.ones(()).dtype == np.float32
  assert not wide.times(1.05).run(QUICK).agrees


def test_a_figure_that_is_no_number_passes_nothing():
  assert not below('x', np.nan, 1.0).passes
  assert not above('x', np.nan, 1.0).passes


def test_the_same_figures_alone_and_among_others():
  (claim,) = named('(10)')
  before = claim.run(QUICK).evidence.holds
  with jax.enable_x64(True):
    jax.random.normal(jax.random.key(1))
  np.random.default_rng(0).normal()
  assert claim.run(QUICK).evidence.holds == before


def test_the_command_exits_with_1_if_a_check_disagrees(monkeypatch, capsys):
  (claim,) = named('(7)')
  monkeypatch.setattr(command, 'named', lambda name: (claim.times(-1.0),))
  with pytest.raises(SystemExit) as ended:
    cli.main(['theory', '--quick', '--claim=7'])
  assert ended.value.code == 1
  assert '0 of 1 as recorded' in capsys.readouterr().out


def test_the_command_prints_the_table(capsys):
  cli.main(['theory', '--quick', '--claim=(7)'])
  out = capsys.readouterr().out
  assert 'Lemma IV.1 (7)' in out
  assert '≤ 1e-12' in out
  assert '1 of 1 as recorded' in out


def test_an_unknown_claim_is_refused(capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(['theory', '--claim=XII'])
  assert ended.value.code == 2
  assert "there is no claim 'XII'; there are: (1), (2)" in (
    capsys.readouterr().err
  )
