# SPDX-License-Identifier: Apache-2.0
"""Fixtures: run directories like the trainer's, with synthetic numbers."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

EVALUATION_INTERVAL = 10  # iterations between evaluations
UPDATES_PER_ITERATION = 2  # per iteration
SOURCE = '"""KL-Cov on Countdown."""\n\ndef get_config():\n  ...\n'


def write_run(
  path: pathlib.Path,
  *,
  seed: int = 0,
  iterations: int = 60,
  finished_iterations: int | None = None,
  method: str = 'kl_cov',
  gain: float = 0.13,
  entropy_ratio: float = 0.7,
  problems: int = 200,
  warm_steps: int = 120,
  keep_problems: bool = True,
  name: str = 'countdown_kl_cov',
  source: str = SOURCE,
) -> pathlib.Path:
  """Writes a run with about the given final accuracy and entropy.

  Args:
    path: the run directory.
    seed: seed of the noise.
    iterations: configured number of iterations.
    finished_iterations: finished iterations; all by default.
    method: name of the entropy-control method; `'none'` selects no tokens.
    gain: gain in accuracy.
    entropy_ratio: final entropy divided by the initial one.
    problems: number of held-out problems.
    warm_steps: steps of the warm start.
    keep_problems: whether to save results by problem.
    name: name of the configuration.
    source: text of the configuration file.
  """
  rng = np.random.default_rng(seed)
  if finished_iterations is None:
    finished_iterations = iterations
  path.mkdir(parents=True)
  (path / 'rollouts').mkdir()
  (path / 'evaluation').mkdir()
  config = {
    'seed': seed,
    'model': {'width': 128, 'layers': 4, 'heads': 4},
    'train': {'iterations': iterations, 'learning_rate': 3e-4},
    'entropy': {'fraction': 0.002, 'coefficient': 1.0},
  }
  settings = {
    'name': name,
    'config': config,
    'source': source,
    'overrides': [f'seed={seed}'],
    'identity': 'f3a9' * 16,
  }
  (path / 'config.json').write_text(json.dumps(settings))
  lines = [
    _warm_start_line(step, rng) for step in range(10, warm_steps + 1, 10)
  ]
  difficulty = np.random.default_rng(99).normal(0, 1.4, problems)
  for iteration in range(finished_iterations + 1):
    progress = 1 - np.exp(-3 * iteration / iterations)
    if iteration % EVALUATION_INTERVAL == 0:
      line, results = _evaluate(
        iteration, progress, gain, entropy_ratio, difficulty, rng
      )
      lines.append(line)
      name = f'iteration_{iteration:06d}.json'
      if keep_problems:
        write_lines(path / 'evaluation' / f'{name}l', results)
      if iteration < finished_iterations:
        samples = _samples(iteration, method, rng)
        (path / 'rollouts' / name).write_text(json.dumps(samples))
    if iteration < finished_iterations:
      lines += _train_lines(
        iteration, progress, method, gain, entropy_ratio, rng
      )
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)
  return path


def write_lines(path: pathlib.Path, lines: list[dict[str, Any]]) -> None:
  path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


def _warm_start_line(step: int, rng: np.random.Generator) -> dict[str, Any]:
  loss = 0.35 + 2.6 * np.exp(-step / 25) + rng.normal(0, 0.02)
  return {
    'phase': 'warm_start',
    'step': step,
    'iteration': 0,
    'loss': loss,
    'accuracy': 0.9 - 0.7 * np.exp(-step / 30) + rng.normal(0, 0.005),
    'tokens_per_second': 52_000 + rng.normal(0, 900),
  }


def _train_lines(iteration: int, *arguments: Any) -> list[dict[str, Any]]:
  """Lines of the updates of one iteration, with equal rollout metrics."""
  first, *other_lines = [
    _train_line(iteration, *arguments) for _ in range(UPDATES_PER_ITERATION)
  ]
  repeated = ('reward', 'response_length', 'time/sample', 'equal_reward_groups')
  for update, line in enumerate((first, *other_lines)):
    line |= {name: first[name] for name in repeated}
    line['step'] = UPDATES_PER_ITERATION * iteration + update + 1
  return [first, *other_lines]


def _train_line(
  iteration: int,
  progress: float,
  method: str,
  gain: float,
  entropy_ratio: float,
  rng: np.random.Generator,
) -> dict[str, Any]:
  noise = rng.normal(0, 1, 12)
  entropy = 0.29 * (1 - (1 - entropy_ratio) * progress) + 0.006 * noise[0]
  line = {
    'phase': 'train',
    'iteration': iteration,
    'reward': 0.28 + gain * progress + 0.03 * noise[1],
    'entropy': entropy,
    'entropy_drift': -0.004 * (1 - progress) + 0.004 * noise[2],
    'predicted_entropy_change/batch': -0.02 * (1 - progress) - 0.006 * noise[3],
    'predicted_entropy_change/state': -0.015 * (1 - progress)
    - 0.004 * noise[2],
    'covariance': 0.02 * (1 - progress) + 0.006 * noise[3],
    'clip_fraction': abs(0.004 + 0.001 * noise[4]),
    'log_ratio_abs': abs(0.018 + 0.002 * noise[5]),
    'log_ratio': -0.0006 + 0.0004 * noise[5],
    'sampler_gap': 4e-7 * np.exp(0.2 * noise[6]),
    'sampler_gap_max': 6e-6 * np.exp(0.3 * noise[6]),
    'tokens_per_second': 5200 + 150 * noise[7],
    'seconds': 1.2 + 0.1 * noise[7],
    'response_length': 12.2 + 0.4 * progress + 0.1 * noise[8],
    'truncated_fraction': abs(0.01 + 0.004 * noise[9]),
    'end_fraction': 0.985 + 0.003 * noise[9],
    'equal_reward_groups': 0.22 + 0.1 * progress + 0.03 * noise[10],
    'gradient_norm': 0.8 + 0.1 * noise[11],
    'time/sample': 1.1 + 0.05 * noise[5],
    'time/update': 0.45 + 0.02 * noise[7],
    'time/rewards': 0.18,
    'time/score': 0.15,
  }
  for index, share in enumerate((0.0002, 0.002, 0.02, 0.2, 0.5)):
    line[f'covariance_top/{share}'] = (
      (4.1, 2.2, 0.9, 0.21, 0.09)[index] * np.exp(0.05 * noise[index])
    ) * (1.2 - 0.5 * progress)
  selects_tokens = method != 'none'
  line['selected_fraction'] = 0.002 if selects_tokens else 0.0
  if selects_tokens:
    counts = rng.multinomial(50, [0.23, 0.02, 0.05, 0.70])
    line |= {
      'selected': 50,
      'quota': 50,
      'eligible': 25_000,
      'threshold': 1.9 - 0.6 * progress,
      'penalty_share': abs(0.06 + 0.01 * noise[0]),
      'quadrant/positive_likely': int(counts[0]),
      'quadrant/positive_rare': int(counts[1]),
      'quadrant/negative_likely': int(counts[2]),
      'quadrant/negative_rare': int(counts[3]),
    }
  return line


def _evaluate(
  iteration: int,
  progress: float,
  gain: float,
  entropy_ratio: float,
  difficulty: np.ndarray,
  rng: np.random.Generator,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
  """Metrics and results by problem of one evaluation."""
  ability = -1.2 + 5.5 * gain * progress
  success_rates = 1 / (1 + np.exp(difficulty - ability))
  correct = (rng.random((difficulty.size, 8)) < success_rates[:, None]).astype(
    int
  )
  greedy = (rng.random(difficulty.size) < success_rates**0.8).astype(int)
  scores = {
    'greedy': greedy.astype(float),
    'mean@8': correct.mean(1),
    'pass@8': correct.max(1).astype(float),
  }
  line: dict[str, Any] = {
    'phase': 'eval',
    'step': UPDATES_PER_ITERATION * iteration,
    'iteration': iteration,
    'problems': difficulty.size,
    'entropy': 0.29 * (1 - (1 - entropy_ratio) * progress)
    + rng.normal(0, 0.003),
  }
  for name, score in scores.items():
    line[name] = float(score.mean())
    line[f'{name}_stderr'] = float(score.std() / np.sqrt(score.size))
  results = [
    {'prompt': f'{i} 7 3 = {i + 10}', 'greedy': int(g), 'correct': c.tolist()}
    for i, (g, c) in enumerate(zip(greedy, correct, strict=True))
  ]
  return line, results


def _samples(
  iteration: int, method: str, rng: np.random.Generator
) -> dict[str, Any]:
  """Content of a file of sampled responses."""
  samples = []
  for index in range(24):
    a, b, c = (int(n) for n in rng.integers(2, 60, 3))
    is_right = bool(rng.random() < 0.4)
    text = f'▁{a} + {b} = {a + b} ; {a + b} - {c} = {a + b - c} </s>'
    tokens = text.replace(' ', ' ▁').split(' ')
    logprobs = -rng.exponential(0.3, len(tokens))
    advantage = 1.2 if is_right else -0.7
    covariance = (logprobs + 0.3) * advantage
    threshold = np.quantile(covariance, 0.97) if index % 3 == 0 else np.inf
    samples.append(
      {
        'prompt': f'{a} {b} {c} = {a + b - c + (not is_right)}',
        'tokens': tokens,
        'logprobs': logprobs.round(4).tolist(),
        'covariance': covariance.round(4).tolist(),
        'selected': (covariance > threshold).tolist()
        if method != 'none'
        else [],
        'advantage': advantage,
        'reward': float(is_right),
      }
    )
  return {'iteration': iteration, 'samples': samples}


@pytest.fixture
def make_run(tmp_path: pathlib.Path) -> Callable[..., pathlib.Path]:
  """`write_run` with a path in the temporary directory of the test."""

  def make(folder: str = 'run', /, **options: Any) -> pathlib.Path:
    return write_run(tmp_path / folder, **options)

  return make


@pytest.fixture
def make_results(tmp_path):
  """Makes directories like those of `covrl evaluate`."""

  def make(directory, sets, recipe=''):
    folder = tmp_path / directory / 'evaluation'
    folder.mkdir(parents=True)
    for name, lines in sets.items():
      text = '\n'.join(map(json.dumps, lines))
      (folder / f'{name}.jsonl').write_text(f'{text}\n')
    if recipe:
      config = {'name': recipe, 'config': {'seed': 0}}
      (tmp_path / directory / 'config.json').write_text(json.dumps(config))
    return tmp_path / directory

  return make
