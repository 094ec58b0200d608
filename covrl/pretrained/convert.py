# SPDX-License-Identifier: Apache-2.0
"""Exports policies as Hugging Face, PEFT or Orbax directories."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
from etils import epath
from jax.sharding import Mesh, NamedSharding
from jax.typing import DTypeLike
from jaxtyping import PyTree

from covrl.data import Tokenizer
from covrl.models import Policy
from covrl.models.input_checks import check_params, param_shapes
from covrl.models.lora import join_adapters, split_adapters
from covrl.pretrained.adapters import base_model_directory, save_adapters
from covrl.pretrained.load import (
  dtype_name,
  load_params,
  load_policy,
  model_origin,
  untied_files,
)
from covrl.pretrained.merging import merge_to_write, warn_in_python
from covrl.pretrained.model_files import (
  check_adapter_ends,
  files_beside_adapters,
  read_model_files,
  with_tokenizer,
)
from covrl.pretrained.policy import PretrainedPolicy
from covrl.pretrained.save import model_files, save_pretrained
from covrl.pretrained.weights.finite import check_finite
from covrl.pretrained.weights.orbax_cache import save_orbax

OutputFormat = Literal['model', 'adapter', 'orbax']


def convert(
  policy: Policy,
  params: PyTree,
  target: epath.PathLike,
  *,
  output_format: OutputFormat,
  dtype: DTypeLike | None = None,
  on_progress: Callable[[int, int], object] = lambda done, total: None,
  warn: Callable[[str], object] = warn_in_python,
) -> None:
  """Writes a policy to a directory.

  Args:
    policy: the policy; for `'adapter'`, one with adapters on a pretrained
      model.
    params: the policy's parameters.
    target: must not exist, or be an empty directory.
    output_format: `'model'` for transformers, `'adapter'` for the LoRA adapters
      alone as PEFT loads them, or `'orbax'` for a model that `load_pretrained`
      loads faster. Adapters are merged into the weights except in `'adapter'`.
    dtype: floating-point dtype of the written weights, such as `jnp.float32` or
      `'bfloat16'`; that of `params` unless given.
    on_progress: called with the number of weight files written so far and the
      total number.
    warn: receives a sentence if adapters are merged and `dtype` rounds away a part
      of the change that they make.

  Raises:
    ValueError: see `save_pretrained` and `save_adapters`; or a weight is not
      finite, in its dtype or in `dtype`.
  """
  name = None if dtype is None else dtype_name(dtype)
  if output_format != 'adapter':
    check_params(params, param_shapes(policy.abstract_params()))
    policy, params = merge_to_write(policy, params, name, warn)
  elif name is not None:
    params = jax.tree.map(lambda leaf: leaf.astype(name), params)
  if output_format == 'adapter':
    save_adapters(target, policy, params)
  elif output_format == 'model':
    save_pretrained(target, policy, params, on_progress=on_progress)
  else:
    check_finite(params, 'the weights to write')
    save_orbax(target, model_files(policy, params), params)


def as_pretrained(
  policy: Policy,
  pretrained: str,
  tokenizer: Tokenizer,
  output_format: OutputFormat = 'model',
) -> PretrainedPolicy:
  """Adds the files that an export needs to a trained policy.

  Responses of the export end as those of the run: where its tokenizer or its end
  tokens differ from the pretrained model's, those of the run are written.

  Args:
    policy: the trained policy.
    pretrained: the model that training started from, whose configuration and
      tokenizer files are used; empty to make them from `tokenizer`.
    tokenizer: the tokenizer of the training run.
    output_format: the format of the export, see `convert`.

  Raises:
    ValueError: the tokenizer adds a BOS token, or none, unlike its file; or with
      `'adapter'`, an end token of the base model ends no response of the run.
  """
  if not pretrained:
    return PretrainedPolicy(
      policy.config, files=with_tokenizer({}, '', tokenizer)
    )
  if output_format == 'adapter':
    check_adapter_ends(pretrained, tokenizer)
  files = with_tokenizer(read_model_files(pretrained), pretrained, tokenizer)
  return PretrainedPolicy(
    policy.config,
    # See `has_own_unembedding`.
    files=files if policy.config.tied_embeddings else untied_files(files),
    origin=model_origin(pretrained),
    adapter_files=files_beside_adapters(files, pretrained),
  )


def with_source_dtype(
  policy: Policy, params: PyTree, pretrained: str
) -> tuple[Policy, PyTree]:
  """Replaces a frozen base model by the source's weights in the source's dtype.

  Adapters may have been trained on a base model in a narrower dtype; merged
  into that, the weights would have fewer digits than the source's.

  Args:
    policy: a policy with adapters.
    params: all parameters of the policy.
    pretrained: the model that training started from.

  Returns:
    The policy and its parameters; those given if the dtypes are equal.
  """
  source_dtype = load_policy(
    base_model_directory(pretrained)
  ).config.param_dtype
  if policy.config.lora is None or policy.config.param_dtype == source_dtype:
    return policy, params
  policy = dataclasses.replace(
    policy, config=dataclasses.replace(policy.config, param_dtype=source_dtype)
  )
  _, adapters = split_adapters(params)
  sharding = jax.tree.leaves(adapters)[0].sharding
  mesh = sharding.mesh if isinstance(sharding, NamedSharding) else None
  mesh = mesh if isinstance(mesh, Mesh) else None
  base = load_params(base_model_directory(pretrained), policy.base, mesh)
  return policy, join_adapters(base, adapters)
