# SPDX-License-Identifier: Apache-2.0
"""Token chains for tests of updates, and methods as options of one chain."""

import inspect

import jax
import jax.numpy as jnp
import optax

import covrl
from covrl.entropy import Selection, add_divergence_penalty, top_score

# Arguments of the chain 'everything' of `make_token_tx`. Coefficients and fractions
# are traced, so that all methods share a program.
METHODS = {
  'clip_cov': {'clip_cov_fraction': 0.04},
  'kl_cov': {'kl_cov_fraction': 0.04, 'kl_cov_coefficient': 1.0},
  'kl_cov with bonus': {
    'kl_cov_fraction': 0.04,
    'kl_cov_coefficient': 1.0,
    'bonus': 0.1,
  },
  'clip_cov and kl_cov with bonus': {
    'clip_cov_fraction': 0.02,
    'kl_cov_fraction': 0.04,
    'kl_cov_coefficient': 0.5,
    'bonus': 0.1,
  },
  'controllers': {'target_entropy': 4.0},
  'none': {},
}

# Methods in front of Clip-Cov, KL-Cov and a bonus that a controller sets, in
# another program, whose loss has VESPO and LUSPO in it. All have options in common.
COMMON_OPTIONS = {
  'clip_cov_fraction': 0.02,
  'kl_cov_fraction': 0.04,
  'kl_cov_coefficient': 0.5,
  'target_entropy': 3.0,
}
COMPOSED_METHODS = {
  'losses alone': {},
  'icepop': {'icepop': 1.0},
  'decoupled_ppo': {'decoupled_ppo': 1.0},
  'reject_sequences': {'reject_sequences': 1.0},
  'entropy_ratio_clip': {'entropy_ratio_clip': 1.0},
  'lp_reg': {'lp_reg': 1.0},
  'aent': {'aent': 0.5},
}

# Least probability of a token of Lp-Reg's proxy, relative to the likeliest.
MIN_P = 0.02


def fingerprinted(selector):
  """A selector that returns a fingerprint of its choice in `eligible`."""

  def select(stats, **context):
    chosen: Selection = selector(stats, **context)
    fingerprint = fingerprint_of(
      chosen.mask, context['sequence_ids'], context['positions']
    )
    return chosen._replace(eligible=fingerprint)

  return select


def fingerprint_of(mask, sequence_ids, positions):
  """A number that identifies a set of tokens."""
  identities = sequence_ids * 64 + positions + 1
  return jnp.sum(jnp.where(mask, identities * identities, 0))


def kl_cov(fraction, coefficient, source):
  """`covrl.kl_cov`, its selector fingerprinted."""
  return covrl.token_masked(
    add_divergence_penalty(coefficient),
    fingerprinted(top_score(fraction, selection_source=source)),
  )


def switched(on, transform):
  """A token transform that acts where `on`, a traced number, is not 0."""

  def update(updates, state, params=None, **context):
    edited, state = transform.update(updates, state, params, **context)
    return jax.tree.map(
      lambda new, old: jnp.where(on != 0, new, old), edited, updates
    ), state

  return optax.GradientTransformationExtraArgs(transform.init, update)


def composed(
  icepop,
  decoupled_ppo,
  reject_sequences,
  entropy_ratio_clip,
  lp_reg,
  aent,
  clip_cov_fraction,
  kl_cov_fraction,
  kl_cov_coefficient,
  target_entropy,
):
  """Methods that are switched on, in front of three that always act."""
  return optax.chain(
    switched(icepop, covrl.icepop()),
    switched(decoupled_ppo, covrl.decoupled_ppo(1.3)),
    switched(reject_sequences, covrl.reject_sequences(0.03)),
    switched(entropy_ratio_clip, covrl.entropy_ratio_clip()),
    covrl.lp_reg(0.05, lp_reg, min_p=MIN_P),
    covrl.aent(aent),
    covrl.clip_cov(clip_cov_fraction, low=0.05),
    kl_cov(kl_cov_fraction, kl_cov_coefficient, 'old'),
    covrl.entropy_bonus(
      covrl.controllers.proportional_integral(target_entropy, minimum=0.0)
    ),
  )


def make_token_tx(chain_name):
  """One of five chains; `everything` and `composed` compile slowly."""

  def everything(
    clip_cov_fraction,
    kl_cov_fraction,
    kl_cov_coefficient,
    bonus,
    target_entropy,
  ):
    return optax.chain(
      covrl.clip_cov(clip_cov_fraction, low=0.05),
      kl_cov(kl_cov_fraction, kl_cov_coefficient, 'old'),
      covrl.entropy_bonus(bonus),
      # With a target of 0 nats neither has an effect.
      covrl.detach_drain(covrl.target_entropy(target_entropy)),
      covrl.entropy_bonus(covrl.target_entropy(target_entropy)),
    )

  def kl_cov_and_bonus(kl_cov_fraction, kl_cov_coefficient, bonus):
    return optax.chain(
      kl_cov(kl_cov_fraction, kl_cov_coefficient, 'old'),
      covrl.entropy_bonus(bonus),
    )

  def kl_cov_current(kl_cov_fraction, kl_cov_coefficient):
    return optax.chain(kl_cov(kl_cov_fraction, kl_cov_coefficient, 'current'))

  def forking_tokens(forking_fraction):
    return optax.chain(covrl.forking_tokens(forking_fraction))

  make_chain = {
    'everything': everything,
    'forking_tokens': forking_tokens,
    'kl_cov_and_bonus': kl_cov_and_bonus,
    'kl_cov_current': kl_cov_current,
    'composed': composed,
  }[chain_name]
  # Options with which no method changes the gradient.
  inactive_options = {
    **dict.fromkeys(
      ('icepop', 'decoupled_ppo', 'reject_sequences', 'entropy_ratio_clip'), 0.0
    ),
    **dict.fromkeys(('lp_reg', 'aent'), 0.0),
    'clip_cov_fraction': 0.01,
    'forking_fraction': 0.01,
    'kl_cov_fraction': 0.01,
    'kl_cov_coefficient': 0.0,
    'bonus': 0.0,
    'target_entropy': 0.0,
  }
  option_names = inspect.signature(make_chain).parameters
  return optax.inject_hyperparams(make_chain)(
    **{name: inactive_options[name] for name in option_names}
  )
