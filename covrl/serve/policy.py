# SPDX-License-Identifier: Apache-2.0
"""Policies to serve: runs and pretrained models, and their engines."""

from __future__ import annotations

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, PyTree

from covrl.config import Config
from covrl.data import Tokenizer, check_tokenizer
from covrl.models import Policy
from covrl.parallel import sharding
from covrl.pretrained import load_pretrained, load_tokenizer
from covrl.rollout import Caching, RequestEngine
from covrl.rollout.caching import EXACT_CACHING
from covrl.train.setup.model_lengths import model_lengths
from covrl.train.setup.restore import open_run
from covrl.train.state_sharding import rollout_mesh

# Default limits of a pretrained model's prompts and responses, in tokens.
DEFAULT_LENGTHS = (2048, 1024)

# Limits of prompts and responses, in tokens; `None` for the default.
Lengths = tuple[int | None, int | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServedPolicy:
  """A policy with the tokenizer, mesh and limits to sample from it.

  Attributes:
    config: configuration of the run, or one that names the pretrained model.
    policy: the model.
    params: all parameters of the policy.
    mesh: mesh of the engine.
    tokenizer: the policy's tokenizer.
    max_prompt_length: tokens of a prompt, at most.
    max_response_length: tokens of a response, at most.
  """

  config: Config
  policy: Policy
  params: PyTree
  mesh: Mesh
  tokenizer: Tokenizer
  max_prompt_length: int
  max_response_length: int

  def fingerprint(self) -> str:
    """Returns a digest of the parameters, the model, tokenizer and limits.

    Of each array it has the sum of its words, which depends on every bit, and on no
    mesh.
    """
    sums = jax.device_get(jax.jit(_word_sums)(self.params))
    tokenizer = self.tokenizer
    parts = (
      [int(total) for total in jax.tree.leaves(sums)],
      dataclasses.replace(self.policy.config, remat='nothing'),
      (tokenizer.fingerprint, tokenizer.bos_id, tuple(tokenizer.end_ids)),
      (self.max_prompt_length, self.max_response_length),
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()

  def engine(
    self, *, slots: int, segment: int, caching: Caching = EXACT_CACHING
  ) -> RequestEngine:
    """Creates the engine, and compiles its programs; see `RequestEngine`."""
    return RequestEngine(
      self.policy,
      self.params,
      self.mesh,
      end_ids=self.tokenizer.end_ids,
      pad_id=self.tokenizer.pad_id,
      max_prompt_length=self.max_prompt_length,
      max_response_length=self.max_response_length,
      slots=slots,
      segment=segment,
      caching=caching,
    )


def _word_sums(params: PyTree) -> PyTree:
  """Returns the sum of an array's words modulo 2³², for each array."""

  def word_sum(leaf: Array) -> Array:
    words = jnp.dtype(f'uint{8 * leaf.dtype.itemsize}')
    bits = jax.lax.bitcast_convert_type(leaf, words)
    return jnp.sum(bits, dtype=jnp.uint32)

  return jax.tree.map(word_sum, params)


def load_run(
  workdir: str, lengths: Lengths = (None, None), *, trust: bool = False
) -> ServedPolicy:
  """Loads the policy of a run's latest checkpoint; see `open_run`.

  Args:
    workdir: the run directory.
    lengths: tokens of a prompt and of a response, at most; by default those of
      the run.
    trust: whether to execute a recipe that another user may have written.

  Raises:
    ValueError: a length is below 1, or they exceed the positions of the
      pretrained model that the run began with.
  """
  with open_run(workdir, trust=trust) as opened:
    prompt, response = _run_lengths(opened.config, lengths)
    return ServedPolicy(
      config=opened.config,
      policy=opened.policy,
      params=opened.params,
      mesh=rollout_mesh(opened.mesh, opened.config.rollout.tensor),
      tokenizer=opened.task.tokenizer,
      max_prompt_length=prompt,
      max_response_length=response,
    )


def load_model(
  directory: str,
  lengths: Lengths = (None, None),
  defaults: tuple[int, int] = DEFAULT_LENGTHS,
) -> ServedPolicy:
  """Loads a pretrained model.

  Args:
    directory: directory or name of the model.
    lengths: tokens of a prompt and of a response, at most.
    defaults: values of lengths that are `None`, reduced if the model has fewer
      positions.

  Raises:
    ValueError: the directory is not a pretrained model, or the lengths exceed
      its positions.
  """
  prompt, response = model_lengths(directory, lengths, defaults)
  tokenizer, mesh = load_tokenizer(directory), sharding.make_mesh()
  policy, params = load_pretrained(directory, mesh)
  check_tokenizer(tokenizer, policy.config.vocab_size)
  return ServedPolicy(
    config=Config(pretrained=directory),
    policy=policy,
    params=params,
    mesh=mesh,
    tokenizer=tokenizer,
    max_prompt_length=prompt,
    max_response_length=response,
  )


def _run_lengths(config: Config, requested_lengths: Lengths) -> tuple[int, int]:
  """Returns the requested lengths, or those of the run for `None`."""
  rollout = config.rollout
  run_lengths = rollout.max_prompt_length, rollout.max_response_length
  prompt, response = (
    length if n is None else n
    for n, length in zip(requested_lengths, run_lengths, strict=True)
  )
  return model_lengths(config.pretrained, (prompt, response), run_lengths)
