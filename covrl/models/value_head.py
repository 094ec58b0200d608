# SPDX-License-Identifier: Apache-2.0
"""Value head: one number per token, in place of the unembedding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PyTree

from covrl.models.config import ModelConfig


class ValueHead(nnx.Module):
  """A linear map from a hidden state to a number; all values are 0 at first."""

  def __init__(self, config: ModelConfig) -> None:
    dtype = config.param_dtype
    self.weight = nnx.Param(jnp.zeros(config.model_dim, dtype), axes=('embed',))
    self.bias = nnx.Param(jnp.zeros((), dtype), axes=())


def apply_value_head(
  head: Mapping[str, Array], hidden: Float[Array, '*B D'], dtype: jnp.dtype
) -> Float[Array, '*B']:
  """Values of hidden states, at full precision.

  Args:
    head: parameters of a `ValueHead`.
    hidden: final hidden states.
    dtype: dtype of the values.
  """
  products = jnp.einsum(
    '...d,d->...',
    hidden.astype(dtype),
    head['weight'].astype(dtype),
    precision=jax.lax.Precision.HIGHEST,
  )
  return products + head['bias'].astype(dtype)


def value_config(config: ModelConfig) -> ModelConfig:
  """Configuration of a critic with the layers of a language model.

  It has no adapters: all of its parameters are trained.
  """
  return dataclasses.replace(config, value_head=True, lora=None)


def add_value_head(
  params: Mapping[str, PyTree], config: ModelConfig
) -> dict[str, PyTree]:
  """Replaces the unembedding of a language model by a value head of zeros.

  Args:
    params: parameters of the language model, without adapters.
    config: configuration of the critic, see `value_config`.
  """
  layers = {name: leaf for name, leaf in params.items() if name != 'head'}
  dtype = config.param_dtype
  head = {'weight': jnp.zeros(config.model_dim, dtype)}
  return {**layers, 'value_head': head | {'bias': jnp.zeros((), dtype)}}
