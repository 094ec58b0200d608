# SPDX-License-Identifier: Apache-2.0
"""PPO's critic, and advantages estimated from its values."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from covrl.array_checks import check_array, concrete_array
from covrl.config import Config
from covrl.config.validation import check_section
from covrl.objectives import (
  adapt_coefficient,
  clipped_value_loss,
  explained_variance,
  gae,
  length_adaptive_decay,
  token_rewards,
  whiten,
)
from covrl.statistics.exact import count_true, exact_mean
from covrl.train.networks.estimator import Credit, CreditInputs, Estimator
from covrl.train.networks.network import Network, network_tx
from covrl.types import Scalar, TokenBatch

CRITIC = 'critic'


def critic(
  config: Config, tx: optax.GradientTransformation | None = None
) -> Network:
  """A critic with the settings of `config.critic`, for `Recipe.networks`.

  Args:
    config: the run's configuration.
    tx: its parameter chain; AdamW with `critic.learning_rate`,
      `critic.weight_decay` and `critic.max_gradient_norm` by default.

  Raises:
    ConfigError: a field of `config.critic` is invalid.
  """
  check_section(config, 'critic')
  settings = config.critic
  tx = tx or network_tx(settings)

  def loss(
    values: Float[Array, 'B T'], rows: TokenBatch
  ) -> tuple[Scalar, dict[str, Any]]:
    value, aux = clipped_value_loss(
      values,
      old_values=rows.network_targets['old_values'],
      returns=rows.network_targets['returns'],
      weights=rows.weights,
      clip=settings.clip or None,
    )
    return value, {'clipped': aux.clipped}

  def metrics(
    values: Float[Array, 'B T'], rows: TokenBatch, per_token: dict[str, Any]
  ) -> dict[str, Scalar]:
    mask, returns = rows.loss_mask, rows.network_targets['returns']
    return {
      'explained_variance': explained_variance(values, returns, mask),
      'clip_fraction': count_true(per_token['clipped'] & mask)
      / count_true(mask),
      'value': exact_mean(values, mask),
      'return': exact_mean(returns, mask),
    }

  return Network(
    output='values', loss=loss, metrics=metrics, tx=tx, initial=settings.initial
  )


def critic_advantages(config: Config, network: str = CRITIC) -> Estimator:
  """Generalised advantages with the settings of `config.critic`.

  The reward of a response, clipped, is at its last token; every token may have a
  KL penalty. Advantages are whitened over the tokens of each update; returns,
  the critic's targets, come from advantages before that.

  Args:
    config: the run's configuration.
    network: name of the critic in `Recipe.networks`.

  Raises:
    ConfigError: a field of `config.critic` is invalid.
  """
  check_section(config, 'critic')
  settings, updates = config.critic, config.updates_per_iteration
  has_penalty = settings.kl_coefficient > 0

  def init() -> dict[str, Scalar]:
    return {'kl_coefficient': jnp.float32(settings.kl_coefficient)}

  def estimate(
    state: dict[str, Scalar], inputs: CreditInputs
  ) -> tuple[Credit, dict[str, Scalar]]:
    rows, mask = inputs.rows, inputs.rows.loss_mask
    log_ratio = None
    if has_penalty:
      if rows.ref_logprobs is None:
        raise ValueError(
          'rows must have ref_logprobs with a critic.kl_coefficient above 0,'
          ' got None'
        )
      log_ratio = rows.old_logprobs - rows.ref_logprobs
    rewards = token_rewards(
      inputs.rewards,
      mask,
      clip=settings.reward_clip or None,
      log_ratio=log_ratio,
      coefficient=state['kl_coefficient'],
      kind=settings.kl,
    )
    values = inputs.outputs[network]
    decay: Any = settings.trace_decay
    if settings.length_decay > 0:
      decay = length_adaptive_decay(mask, settings.length_decay)
    advantages, returns = gae(
      rewards.rewards,
      values,
      mask,
      discount=settings.discount,
      trace_decay=decay,
      critic_trace_decay=settings.critic_trace_decay,
      whiten=False,
    )
    metrics = {
      'advantage': exact_mean(advantages, mask),
      'clipped_rewards': jnp.mean(rewards.clipped, dtype=jnp.float32),
    }
    if settings.whiten:
      advantages = _whiten_updates(advantages, mask, inputs.update_ids, updates)
    if has_penalty:
      metrics |= {
        'kl_to_reference': rewards.divergence,
        'kl_coefficient': state['kl_coefficient'],
      }
      if settings.kl_target > 0:
        state = {
          'kl_coefficient': adapt_coefficient(
            state['kl_coefficient'],
            rewards.divergence,
            target=settings.kl_target,
            horizon=settings.kl_horizon,
            sequences=float(mask.shape[0]),
          )
        }
    targets = {'old_values': jnp.where(mask, values, 0), 'returns': returns}
    return Credit(advantages, targets, metrics), state

  return Estimator(
    init=init,
    estimate=estimate,
    networks=(network,),
    output='values',
    target_names=('old_values', 'returns'),
    reads_reference=has_penalty,
    config_sections=('critic',),
  )


def _whiten_updates(
  advantages: Float[Array, 'S T'],
  mask: Bool[Array, 'S T'],
  update_ids: Int[Array, ' S'],
  updates: int,
) -> Float[Array, 'S T']:
  """Whitens advantages over the tokens of each optimiser batch.

  Advantages of sequences that no update trains on are NaN.
  """
  check_array('update_ids', update_ids, 'int', 'S', mask.shape[:1])
  ids = concrete_array(update_ids)
  if ids is not None and ids.size and not 0 <= ids.min() <= ids.max() < updates:
    wrong = ids[(ids < 0) | (ids >= updates)][0]
    raise ValueError(f'update_ids must lie in [0, {updates}), got {wrong}')

  def whiten_update(update_id: Int[Array, ''], whitened: Array) -> Array:
    update_mask = mask & (update_ids == update_id)[:, None]
    return jnp.where(update_mask, whiten(advantages, update_mask), whitened)

  return jax.lax.fori_loop(
    0,
    updates,
    whiten_update,
    jnp.where(mask, jnp.nan, jnp.zeros_like(advantages)),
  )
