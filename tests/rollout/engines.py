# SPDX-License-Identifier: Apache-2.0
"""A sampling engine of a tiny policy, prompts for it, and the policy's logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from covrl.models import Policy, tiny
from covrl.rollout import Sampling, SamplingEngine, to_rollout_rows

# Size of the vocabulary, number of prompts, their padded length, responses per
# prompt, largest number of tokens of a response, and the tokens that end one.
VOCAB, PROMPTS, LENGTH, GROUP, LIMIT, END = 16, 8, 6, 4, 10, (3, 5)
POLICY = Policy(tiny(VOCAB))
PARAMS = POLICY.init(jax.random.key(0))
KEY = jax.random.key(7)
ALL_ROWS = slice(None)
IDS = 100 + np.arange(PROMPTS * GROUP, dtype=np.int32)


def make_engine(mesh=None, **changes):
  settings = {'end_ids': END, 'pad_id': 0, 'max_response_length': LIMIT}
  return SamplingEngine(POLICY, mesh, **{**settings, **changes})


ENGINE = make_engine()


def make_prompts(count=PROMPTS):
  """Random prompts, padded on the left, and the mask of their tokens."""
  rng = np.random.default_rng(0)
  prompts = rng.integers(0, VOCAB, (count, LENGTH)).astype(np.int32)
  lengths = 1 + rng.integers(0, LENGTH, (count, 1))
  return prompts, np.arange(LENGTH) >= LENGTH - lengths


def sample(
  engine=ENGINE,
  *,
  rows: list[int] | slice = ALL_ROWS,
  ids=None,
  params=PARAMS,
  options=None,
  **sampling,
):
  """Samples responses to some of the prompts.

  Args:
    engine: the engine.
    rows: the prompts.
    ids: ids of the responses; those of the prompts by default.
    params: parameters of the policy.
    options: further arguments of `SamplingEngine.sample`.
    **sampling: arguments of `Sampling.make`.
  """
  prompts, mask = make_prompts()
  if ids is None:
    ids = IDS.reshape(PROMPTS, GROUP)[rows].reshape(-1)
  return engine.sample(
    params,
    prompts[rows],
    mask[rows],
    group_size=GROUP,
    key=KEY,
    sequence_ids=ids,
    sampling=Sampling.make(**sampling),
    **(options or {}),
  )


def params_on(mesh):
  """The parameters, sharded over a mesh."""
  shardings = jax.tree.map(
    lambda leaf: leaf.sharding, POLICY.abstract_params(mesh)
  )
  return jax.device_put(PARAMS, shardings)


def to_numpy(samples):
  """Converts to numpy, whose indexing compiles nothing."""
  return jax.device_get(samples)


@functools.partial(jax.jit, static_argnums=0)
def forward(policy, rows, params=PARAMS):
  """Logits of whole rows."""
  hidden = policy.hidden(
    params,
    rows['tokens'],
    positions=rows['positions'],
    segment_ids=rows['attention_mask'].astype(jnp.int32),
  )
  return hidden.astype(jnp.float32) @ policy.unembedding(params)


def to_rows(samples):
  """Prompts and responses as rows of rollouts."""
  return to_rollout_rows(*make_prompts(), samples, GROUP)
