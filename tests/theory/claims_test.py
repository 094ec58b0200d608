# SPDX-License-Identifier: Apache-2.0
"""Claims agree with their recorded verdicts; wrong formulas are detected."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from theory_checks import (
  QUICK,
  assert_agrees_with_record,
  assert_disagrees_with_record,
  over_claims,
  over_perturbations,
  uses_experiments,
)

from covrl import cli
from covrl.theory import runner
from covrl.theory.claim import Result, Section
from covrl.theory.evidence import Evidence, at_least, at_most, close_to
from covrl.theory.sections import CLAIMS, find_claims

QUICK_CLAIMS = [claim for claim in CLAIMS if not uses_experiments(claim)]


@over_claims(QUICK_CLAIMS)
def test_claim_agrees_with_its_record(claim):
  assert_agrees_with_record(claim)


@over_perturbations(QUICK_CLAIMS)
def test_wrong_formula_is_detected(perturbed):
  assert_disagrees_with_record(perturbed)


def test_all_numbered_statements_are_present_in_order():
  numbers = [
    int(word.strip('()'))
    for claim in CLAIMS
    for word in claim.name.replace('–', ' ').split()
    if word.startswith('(') and word.strip('()').isdigit()
  ]
  assert numbers == sorted(numbers)
  # The names "(11)–(12)" and "(23)–(25)" span several equations.
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


def test_claims_are_found_by_name_and_by_number():
  for claim in CLAIMS:
    assert claim in find_claims(claim.name)
    number = re.search(r'\(\d+\)', claim.name)
    if number:
      assert claim in find_claims(number[0])
      assert claim in find_claims(number[0].strip('()'))


def test_wrong_recorded_verdict_is_detected():
  (claim,) = find_claims('(7)')
  assert not dataclasses.replace(claim, verdict='fails').run(QUICK).agrees
  (claim,) = find_claims('(9)')
  assert not dataclasses.replace(claim, verdict='holds').run(QUICK).agrees
  with pytest.raises(ValueError, match="'holds', 'fails' or"):
    dataclasses.replace(claim, verdict='probably')


def test_conditional_verdict_needs_passing_checks_of_its_condition():
  (claim,) = find_claims('(9)')
  with pytest.raises(ValueError, match='conditional must have checks'):
    Result(claim, Evidence(printed=[at_most('x', 1.0, 0.0)]))
  unmet = Evidence(
    printed=[at_most('x', 1.0, 0.0)], conditional=[at_most('x', 1.0, 0.0)]
  )
  assert Result(claim, unmet).measured_verdict == 'fails'
  assert not Result(claim, unmet).agrees


def test_claims_run_in_64_bits_without_changing_the_default():
  dtypes = []
  section = Section('a section')

  @section.claim(
    'A', printed='', corrected='', verdict='holds', formula=lambda x: x
  )
  def wide(settings, formula):
    dtypes.append(jnp.ones(()).dtype)
    return Evidence(printed=[close_to('x', formula(1.0), 1.0, 0.01)])

  assert wide.run(QUICK).agrees
  assert dtypes == [np.float64]
  assert jnp.ones(()).dtype == np.float32
  assert not wide.scaled(1.05).run(QUICK).agrees


def test_checks_of_nan_fail():
  assert not at_most('x', np.nan, 1.0).passes
  assert not at_least('x', np.nan, 1.0).passes


def test_values_do_not_depend_on_earlier_random_draws():
  (claim,) = find_claims('(10)')
  before = claim.run(QUICK).evidence.corrected
  with jax.enable_x64(True):
    jax.random.normal(jax.random.key(1))
  np.random.default_rng(0).normal()
  assert claim.run(QUICK).evidence.corrected == before


def test_command_exits_with_1_if_a_claim_disagrees(monkeypatch, capsys):
  (claim,) = find_claims('(7)')
  monkeypatch.setattr(runner, 'find_claims', lambda name: (claim.scaled(-1.0),))
  with pytest.raises(SystemExit) as ended:
    cli.main(['theory', '--quick', '--claim=7'])
  assert ended.value.code == 1
  assert '0 of 1 as recorded' in capsys.readouterr().out


def test_command_prints_the_table(capsys):
  cli.main(['theory', '--quick', '--claim=(7)'])
  out = capsys.readouterr().out
  assert 'Lemma IV.1 (7)' in out
  assert '≤ 1e-12' in out
  assert '1 of 1 as recorded' in out


def test_refuses_an_unknown_claim(capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main(['theory', '--claim=XII'])
  assert ended.value.code == 2
  error = capsys.readouterr().err
  assert 'a claim must be one of (1), (2), ' in error
  assert "got 'XII'" in error
