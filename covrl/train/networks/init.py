# SPDX-License-Identifier: Apache-2.0
"""Models of networks beside the policy, and their initial parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import PyTree

from covrl.config import Config, ConfigError
from covrl.data import Tokenizer
from covrl.data.tokenizers.tokenizer import find_different_token
from covrl.models import Policy, add_value_head, value_config
from covrl.pretrained import load_params, load_policy, load_tokenizer
from covrl.train.networks.network import POLICY, RANDOM, Network
from covrl.train.rollout_batch import INIT_STREAM
from covrl.train.state_sharding import shardings


def network_model(name: str, network: Network, policy: Policy) -> Policy:
  """Returns a network's model; all of its parameters are trained.

  Args:
    name: the network's name, for errors.
    network: the network.
    policy: the policy beside which it is trained.

  Raises:
    ConfigError: its vocabulary is not the policy's.
    ValueError: the pretrained model cannot be read.
  """
  config = policy.config
  if network.initial not in (POLICY, RANDOM):
    config = load_policy(network.initial, config.dtype).config
    if config.vocab_size != policy.config.vocab_size:
      raise ConfigError(
        f'the network {name!r} must have the vocabulary of the policy, '
        f'{policy.config.vocab_size} tokens, got {config.vocab_size} in '
        f'{network.initial}'
      )
  param_dtype = policy.config.param_dtype
  if policy.config.lora is not None:
    # A frozen base may be in bfloat16; trained parameters need float32.
    param_dtype = jnp.promote_types(param_dtype, jnp.float32)
  config = dataclasses.replace(
    config, lora=None, param_dtype=param_dtype, remat=policy.config.remat
  )
  return Policy(value_config(config) if network.output == 'values' else config)


def check_network_tokenizers(
  networks: Mapping[str, Network],
  tokenizer: Tokenizer,
  warn: Callable[[str], object],
) -> None:
  """Checks that pretrained networks read the tokens as the policy does.

  Args:
    networks: the networks by name.
    tokenizer: the policy's tokenizer.
    warn: receives a sentence about a model without a tokenizer.

  Raises:
    ConfigError: a token has another text in a network's tokenizer.
  """
  for name, network in networks.items():
    if network.initial in (POLICY, RANDOM):
      continue
    try:
      other = load_tokenizer(network.initial)
    except ValueError as error:
      warn(
        f'whether the network {name!r} reads the tokens as the policy does cannot be'
        f' checked: {error}'
      )
      continue
    if different := find_different_token(tokenizer, other):
      token, text, other_text = different
      raise ConfigError(
        f'the network {name!r} must have the tokenizer of the policy, in which'
        f' token {token} is {text!r}, got {other_text!r} in {network.initial}'
      )


def initial_params(
  initial: str,
  model: Policy,
  policy: Policy,
  params: PyTree,
  config: Config,
  mesh: Mesh,
  index: int,
) -> PyTree:
  """Returns a network's parameters at the start of a run.

  Args:
    initial: see `Network.initial`.
    model: the network's model.
    policy: the policy.
    params: all parameters of the policy at the start of the run; not donated.
    config: the run's configuration.
    mesh: the mesh of the training state.
    index: number of the network, for its random parameters.
  """
  if initial == RANDOM:
    key = jax.random.fold_in(jax.random.key(config.seed), INIT_STREAM)
    return model.init(jax.random.fold_in(key, 1 + index), mesh)
  dtype: Any = model.config.param_dtype
  if initial == POLICY:
    base = policy.merge(params, dtype)
  else:
    loaded = load_policy(initial, model.config.dtype)
    base = loaded.merge(load_params(initial, loaded, mesh), dtype)

  def make(base: PyTree) -> PyTree:
    copied = jax.tree.map(lambda leaf: jnp.array(leaf, dtype), base)
    return (
      add_value_head(copied, model.config)
      if model.config.value_head
      else copied
    )

  out_shardings = shardings(model.abstract_params(mesh))
  return jax.jit(make, out_shardings=out_shardings)(base)
