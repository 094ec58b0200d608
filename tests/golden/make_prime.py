# SPDX-License-Identifier: Apache-2.0
"""Makes prime.npz: advantages and losses of PRIME, by plain Python loops.

  python tests/golden/make_prime.py

Written from the published formulas with NumPy in float64, one response and one
token after the other, and without code of covrl. Entries are named
`in/NAME` and `out/FORM/NORMALISED/NAME`.
"""

import math
import pathlib
from typing import Any

import numpy as np

GROUPS, SIZE, WIDTH = 3, 4, 9
# Scale of log-ratios, and coefficients of the rewards of tokens and of outcomes.
BETA, PROCESS, OUTCOME = 0.05, 5.0, 5.0


def main() -> None:
  """Writes the file."""
  rng = np.random.default_rng(9)
  count = GROUPS * SIZE
  logprobs = -rng.exponential(1.0, (count, WIDTH))
  reference = -rng.exponential(1.0, (count, WIDTH))
  starts = rng.integers(0, 3, count)
  ends = starts + rng.integers(1, WIDTH - 2, count)
  outcomes = (rng.random(count) < 0.5).astype(float)
  groups = rng.permutation(np.repeat(np.arange(GROUPS), SIZE))
  outcomes[groups == 1] = 1.0
  columns = np.arange(WIDTH)
  mask = (columns >= starts[:, None]) & (columns < ends[:, None])
  mask[0, starts[0] + 1] = ends[0] - starts[0] <= 2  # a tool's token
  saved: dict[str, Any] = {
    'in/logprobs': logprobs,
    'in/ref_logprobs': reference,
    'in/mask': mask,
    'in/outcomes': outcomes,
    'in/group_ids': groups,
  }
  responses = [[int(t) for t in np.flatnonzero(row)] for row in mask]
  log_ratios = [
    [float(logprobs[i, t] - reference[i, t]) for t in tokens]
    for i, tokens in enumerate(responses)
  ]
  for form in ('paper', 'code'):
    for normalised in (False, True):
      result = advantages(log_ratios, outcomes, groups, form, normalised)
      for name, lists in (
        ('advantages', result),
        ('standardised', standardised(result)),
      ):
        table = np.zeros((count, WIDTH))
        for i, tokens in enumerate(responses):
          table[i, tokens] = lists[i]
        saved[f'out/{form}/{normalised}/{name}'] = table
  saved['out/loss'] = np.array(cross_entropy(log_ratios, outcomes))
  saved['out/pair_accuracy'] = np.array(
    ordered_pairs(log_ratios, outcomes, groups)
  )
  file: Any = pathlib.Path(__file__).parent / 'prime.npz'
  np.savez_compressed(file, **saved)


def advantages(log_ratios, outcomes, groups, form, normalised):
  """Advantages of all tokens, as lists."""
  rewards = [
    [BETA * log_ratio for log_ratio in response_rewards]
    for response_rewards in log_ratios
  ]
  if form == 'code':
    for response_rewards in rewards:
      response_rewards[-1] = 0.0
  if normalised:
    largest = max(
      abs(sum(response_rewards[t:]))
      for response_rewards in rewards
      for t in range(len(response_rewards))
    )
    rewards = [
      [r / (largest + 1e-6) for r in response_rewards]
      for response_rewards in rewards
    ]
  means = [
    sum(response_rewards) / len(response_rewards)
    for response_rewards in rewards
  ]
  result = []
  for i, response_rewards in enumerate(rewards):
    members = [j for j in range(len(rewards)) if groups[j] == groups[i]]
    other_members = [j for j in members if j != i]
    n = len(members)
    if form == 'paper':
      baseline = sum(means[j] for j in other_members) / (n - 1)
      process = [r - baseline for r in response_rewards]
    else:
      total = sum(means[j] for j in members)
      process = [r * n / (n - 1) - total / (n - 1) for r in response_rewards]
    outcome = outcomes[i] - sum(outcomes[j] for j in other_members) / (n - 1)
    tokens = []
    for t in range(len(response_rewards)):
      rest_of_process = sum(PROCESS * r for r in process[t:])
      tokens.append(rest_of_process + OUTCOME * outcome)
    result.append(tokens)
  return result


def standardised(lists):
  """Values minus their mean, over their unbiased standard deviation."""
  values = [x for response_values in lists for x in response_values]
  mean = sum(values) / len(values)
  variance = sum((x - mean) ** 2 for x in values) / (len(values) - 1)
  return [
    [(x - mean) / math.sqrt(variance + 1e-8) for x in response_values]
    for response_values in lists
  ]


def cross_entropy(log_ratios, outcomes):
  """Mean cross-entropy of the outcomes, in nats."""
  losses = []
  for each, outcome in zip(log_ratios, outcomes, strict=True):
    probability = 1 / (1 + math.exp(-BETA * sum(each)))
    losses.append(-math.log(probability if outcome else 1 - probability))
  return sum(losses) / len(losses)


def ordered_pairs(log_ratios, outcomes, groups):
  """Share of pairs in which the right response has the larger Σ log_ratios."""
  is_ordered = [
    sum(log_ratios[i]) > sum(log_ratios[j])
    for i in range(len(log_ratios))
    for j in range(len(log_ratios))
    if groups[i] == groups[j] and outcomes[i] > outcomes[j]
  ]
  return sum(is_ordered) / len(is_ordered)


if __name__ == '__main__':
  main()
