# SPDX-License-Identifier: Apache-2.0
"""Effect of a KV cache of 8-bit integers on log-probabilities.

  python tests/benchmarks/int8_cache.py --model=DIRECTORY
    [--dtypes float32 bfloat16] [--tokens=64]

Sixteen responses to four prompts are sampled with each type of cache, and scored
by the trainer's forward pass in the same dtype, without a cache. The gap is
|log π(sampler) − log π(trainer)| in nats over all sampled tokens; the ratio is
the mean of π(trainer) / π(sampler), the importance weight, which is 1 in
expectation. In bfloat16 the trainer is also compared with itself in float32, with
the same parameters: the rounding error of bfloat16. Bytes are those of one token's
keys and values in all layers.
"""

from __future__ import annotations

import argparse
import dataclasses
import os

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from covrl.compile.model_cost import cache_bytes
from covrl.models import Policy
from covrl.pretrained import load_pretrained, load_tokenizer
from covrl.rollout import Caching, Sampling, SamplingEngine, to_rollout_rows

PROMPTS = (
  'The capital of France is',
  'Once upon a time, a small robot',
  'To solve 12 + 30 we first',
  'In 1969, the first people',
)
# Responses per prompt.
GROUP = 4


def main() -> None:
  """Prints a table of the gaps, one row per dtype and type of cache."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--model', required=True)
  parser.add_argument('--dtypes', nargs='*', default=['float32', 'bfloat16'])
  parser.add_argument('--tokens', type=int, default=64)
  options = parser.parse_args()
  tokenizer = load_tokenizer(options.model)
  encoded = [tokenizer.encode(text) for text in PROMPTS]
  width = max(map(len, encoded))
  prompts = np.array([[0] * (width - len(t)) + [*t] for t in encoded], np.int32)
  mask = np.array([np.arange(width) >= width - len(t) for t in encoded])
  print(
    '| dtype | cache | tokens | bytes per token | mean gap | 99 % | largest | '
    'mean ratio |\n|---|---|---:|---:|---:|---:|---:|---:|'
  )
  for dtype in options.dtypes:
    policy, params = load_pretrained(options.model, dtype=dtype)
    for int8 in (False, True):
      sampler, trainer, trainer_float32 = logprobs(
        policy, params, prompts, mask, options.tokens, int8=int8
      )
      size = cache_bytes(policy.config, 1, 0, 1, int8=int8)
      name = 'int8' if int8 else dtype
      print_row(dtype, name, f'{size:,}', sampler, trainer)
      if dtype != 'float32' and not int8:
        print_row(
          dtype, 'none: the trainer in float32', '', trainer_float32, trainer
        )


def print_row(
  dtype: str,
  cache: str,
  size: str,
  logprobs: np.ndarray,
  trainer_logprobs: np.ndarray,
) -> None:
  """Prints the differences of log-probabilities to the trainer's."""
  gap = np.abs(logprobs - trainer_logprobs)
  print(
    f'| {dtype} | {cache} | {len(gap):,} | {size} | {gap.mean():.2g} | '
    f'{np.quantile(gap, 0.99):.2g} | {gap.max():.2g} | '
    f'{np.exp(trainer_logprobs - logprobs).mean():.4f} |',
    flush=True,
  )


def logprobs(
  policy: Policy,
  params: PyTree,
  prompts: np.ndarray,
  mask: np.ndarray,
  tokens: int,
  *,
  int8: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Log-probabilities of sampled tokens: sampler, trainer, trainer in float32."""
  engine = SamplingEngine(
    policy,
    # Without end tokens, all responses have full length.
    end_ids=(),
    pad_id=0,
    max_response_length=tokens,
    caching=Caching(int8=int8),
  )
  samples = engine.sample(
    params,
    prompts,
    mask,
    group_size=GROUP,
    key=jax.random.key(0),
    sequence_ids=np.arange(len(prompts) * GROUP, dtype=np.int32),
    sampling=Sampling.make(),
  )
  rows = to_rollout_rows(prompts, mask, samples, GROUP)
  prompt_width = prompts.shape[1]

  def score(policy: Policy, params: PyTree) -> np.ndarray:
    @jax.jit
    def score_rows(
      params: PyTree,
      tokens: jax.Array,
      positions: jax.Array,
      attention_mask: jax.Array,
    ) -> jax.Array:
      hidden = policy.hidden(
        params,
        tokens,
        positions=positions,
        segment_ids=attention_mask.astype(jnp.int32),
      )
      logits = policy.project(params, hidden[:, prompt_width - 1 : -1])
      chosen = tokens[:, prompt_width:, None]
      chosen = jnp.take_along_axis(logits, chosen, axis=2)
      return chosen[..., 0] - jax.scipy.special.logsumexp(logits, axis=2)

    arrays = rows['tokens'], rows['positions'], rows['attention_mask']
    scored = [
      score_rows(params, *(jnp.asarray(x[i : i + 4]) for x in arrays))
      for i in range(0, len(prompts) * GROUP, 4)
    ]
    return np.concatenate(scored).astype(np.float64).reshape(-1)

  sampled = np.asarray(samples.sampler_logprobs, np.float64).reshape(-1)
  policy_float32 = Policy(
    dataclasses.replace(policy.config, dtype=jnp.dtype('float32'))
  )
  return sampled, score(policy, params), score(policy_float32, params)


if __name__ == '__main__':
  main()
