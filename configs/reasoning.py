"""Recipes for pretrained policies on math and code, with published settings.

  covrl train --config=reasoning:NAME --workdir=runs/NAME --config.data.train=FILES --config.evaluate.suite_directory=DIRECTORY

The recipes differ only in the model, the loss, the token chain and their
numbers. By default they train on DAPO-Math-17k as published (which repeats every
question about a hundred times) and evaluate on seven suites; both are files
that you provide. Only the model is downloaded, and `--config.pretrained=DIRECTORY` avoids
that. The recipes are sized for the hardware they name; none has been run there.

The numbers are those of [1] and its scripts. Tokens are selected by old
statistics, which saves a forward pass per update, and log ratios are bounded at
±20; the recipes `paper_*` and `verl_*` do neither, as published. The published
scripts select within each micro-batch of each device, to which
`scope='micro_batch'` is nearest; `'batch'` is that of the paper. Means of the
seven suites "as printed" are those of the paper; the means in parentheses are
computed from the paper's values for each suite.

[1] Cui et al., The Entropy Mechanism of Reinforcement Learning for Reasoning
Language Models, arXiv:2505.22617.
[2] Cui et al., Process Reinforcement through Implicit Rewards, arXiv:2502.01456.
"""

import dataclasses

import optax

import covrl
from covrl.config import Recipe
from covrl.recipes import reasoning_parts as parts
from covrl.train.networks import critic, critic_advantages
from covrl.types import Scope


def qwen2_5_7b_grpo() -> Recipe:
  """GRPO on Qwen2.5-7B: PPO's clip and no entropy control.

  Run: covrl train --config=reasoning:qwen2_5_7b_grpo --workdir=runs/qwen2_5_7b_grpo
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy falls from 0.65 to 0.02 nats within some hundred updates; AIME
  2024 21.2, MATH500 78.8, mean of the seven suites 38.6 as printed (39.1).
  Source: [1], table 2 and its scripts.
  """
  return parts.recipe_7b('Qwen/Qwen2.5-7B')


def qwen2_5_7b_grpo_no_clip() -> Recipe:
  """GRPO without a clip on Qwen2.5-7B: the base loss of KL-Cov alone.

  Run: covrl train --config=reasoning:qwen2_5_7b_grpo_no_clip --workdir=runs/qwen2_5_7b_grpo_no_clip
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: a comparison that shows the effect of the missing clip alone.
  Source: none; the loss is that of KL-Cov in [1].
  """
  return dataclasses.replace(qwen2_5_7b_grpo(), loss=parts.unclipped)


def qwen2_5_7b_clip_higher() -> Recipe:
  """Clip-higher on Qwen2.5-7B: GRPO with a wider clip range above 1.

  Run: covrl train --config=reasoning:qwen2_5_7b_clip_higher --workdir=runs/qwen2_5_7b_clip_higher
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy ends at 0.33 nats, the highest of all; AIME 2024 18.1, MATH500
  79.2, mean of the seven suites 38.8 as printed (39.8).
  Source: [1], table 2; the range is that of Yu et al., DAPO, arXiv:2503.14476.
  """
  recipe = qwen2_5_7b_grpo()
  recipe.config.train.clip_high = 0.28
  return recipe


def qwen2_5_7b_entropy_bonus() -> Recipe:
  """GRPO with a constant entropy bonus on all tokens, on Qwen2.5-7B.

  Run: covrl train --config=reasoning:qwen2_5_7b_entropy_bonus --workdir=runs/qwen2_5_7b_entropy_bonus
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: a comparison whose coefficient is a guess: too small has no effect, too
  large makes the entropy explode.
  Source: none for this coefficient.
  """
  recipe = qwen2_5_7b_grpo()
  recipe.config.entropy.coefficient = 1e-3
  return dataclasses.replace(
    recipe,
    token_tx=lambda config: covrl.entropy_bonus(config.entropy.coefficient),
  )


def qwen2_5_7b_clip_cov() -> Recipe:
  """Clip-Cov on Qwen2.5-7B: no gradient from a few tokens of high covariance.

  Run: covrl train --config=reasoning:qwen2_5_7b_clip_cov --workdir=runs/qwen2_5_7b_clip_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy ends at 0.07 nats; AIME 2024 22.1, MATH500 80.4, mean of the
  seven suites 40.4 as printed (41.7).
  Source: [1], table 2 and its scripts.
  """
  return parts.with_clip_cov(qwen2_5_7b_grpo())


def qwen2_5_7b_kl_cov() -> Recipe:
  """KL-Cov on Qwen2.5-7B: a penalty on the tokens of highest covariance.

  Run: covrl train --config=reasoning:qwen2_5_7b_kl_cov --workdir=runs/qwen2_5_7b_kl_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy ends at 0.22 nats, ten times GRPO's; AIME 2024 22.6, MATH500
  80.8, mean of the seven suites 40.6 as printed (41.1).
  Source: [1], table 2 and its scripts.
  """
  return parts.with_kl_cov(qwen2_5_7b_grpo())


def qwen2_5_7b_kl_cov_annealed() -> Recipe:
  """KL-Cov on Qwen2.5-7B, its coefficient annealed to 0.

  Run: covrl train --config=reasoning:qwen2_5_7b_kl_cov_annealed --workdir=runs/qwen2_5_7b_kl_cov_annealed
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: at first as KL-Cov, at the end as without a clip: the penalty's bias
  vanishes with it.
  Source: none for the schedule; otherwise [1].
  """
  return dataclasses.replace(
    qwen2_5_7b_kl_cov(),
    token_tx=lambda config: covrl.kl_cov(
      fraction=config.entropy.fraction,
      coefficient=optax.linear_schedule(
        config.entropy.coefficient, 0.0, config.schedule_updates
      ),
      selection_source=config.entropy.selection_source,
    ),
  )


def qwen2_5_7b_ppo() -> Recipe:
  """PPO on Qwen2.5-7B: a critic's values in place of the group's rewards.

  Run: covrl train --config=reasoning:qwen2_5_7b_ppo --workdir=runs/qwen2_5_7b_ppo
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: as GRPO, once the critic explains most of the returns' variance; no
  figures are published for these settings.
  Source: verl's defaults for the critic (γ = λ = 1, values clipped at 0.5, a
  learning rate of 1e-5 and weight decay of 0.01); otherwise [1].
  """
  recipe = qwen2_5_7b_grpo()
  # Groups of equal reward have advantages, too.
  recipe.config.rollout.max_draws = 1
  return dataclasses.replace(
    recipe,
    networks=lambda config: {'critic': critic(config)},
    estimator=critic_advantages,
  )


def qwen2_5_7b_rloo() -> Recipe:
  """RLOO on Qwen2.5-7B: rewards minus the mean of the group's other responses.

  Run: covrl train --config=reasoning:qwen2_5_7b_rloo --workdir=runs/qwen2_5_7b_rloo
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: as GRPO; no figures are published for these settings.
  Source: Ahmadian et al., Back to Basics, arXiv:2402.14740; otherwise [1].
  """
  return dataclasses.replace(
    qwen2_5_7b_grpo(), advantages=lambda config: covrl.leave_one_out
  )


def qwen2_5_7b_rloo_kl_cov() -> Recipe:
  """RLOO on Qwen2.5-7B with the loss and the penalty of KL-Cov.

  Run: covrl train --config=reasoning:qwen2_5_7b_rloo_kl_cov --workdir=runs/qwen2_5_7b_rloo_kl_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy above RLOO's; no figures are published.
  Source: as `qwen2_5_7b_rloo`; KL-Cov as in [1].
  """
  return parts.with_kl_cov(qwen2_5_7b_rloo())


def qwen2_5_7b_prime() -> Recipe:
  """PRIME on Qwen2.5-7B: rewards of tokens from an implicit reward model.

  256 prompts × 4 responses of up to 3,072 tokens in one update; prompts of which
  fewer than a fifth or more than four fifths of the responses are right are
  drawn again, up to four times.

  Run: covrl train --config=reasoning:qwen2_5_7b_prime --workdir=runs/qwen2_5_7b_prime
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: no figures are published for this model; the authors begin with a model
  that they have fine-tuned.
  Source: [2] and its scripts; settings that they do not state are those of [1].
  """
  return parts.with_prime(qwen2_5_7b_grpo())


def qwen2_5_7b_prime_kl_cov() -> Recipe:
  """PRIME on Qwen2.5-7B with the loss and the penalty of KL-Cov.

  An iteration has four updates: the penalty has no gradient in the first.

  Run: covrl train --config=reasoning:qwen2_5_7b_prime_kl_cov --workdir=runs/qwen2_5_7b_prime_kl_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy above PRIME's; no figures are published.
  Source: as `qwen2_5_7b_prime`; KL-Cov and the size of an update as in [1].
  """
  recipe = qwen2_5_7b_prime()
  train, kl_cov_train = recipe.config.train, qwen2_5_7b_kl_cov().config.train
  train.sequences_per_update = kl_cov_train.sequences_per_update
  train.micro_batches = 4
  return parts.with_kl_cov(recipe)


def qwen2_5_32b_grpo() -> Recipe:
  """GRPO on Qwen2.5-32B: PPO's clip and no entropy control.

  Run: covrl train --config=reasoning:qwen2_5_32b_grpo --workdir=runs/qwen2_5_32b_grpo
  Hardware: 128 chips of TPU v5p (4x4x8).
  Expect: entropy falls from 0.73 to 0.025 nats; AIME 2024 21.8, MATH500 84.2,
  mean of the seven suites 45.8 as printed (45.2).
  Source: [1], table 2 and its scripts.
  """
  return parts.recipe_32b('Qwen/Qwen2.5-32B')


def qwen2_5_32b_kl_cov() -> Recipe:
  """KL-Cov on Qwen2.5-32B: a penalty on the tokens of highest covariance.

  Run: covrl train --config=reasoning:qwen2_5_32b_kl_cov --workdir=runs/qwen2_5_32b_kl_cov
  Hardware: 128 chips of TPU v5p (4x4x8).
  Expect: entropy ends at 0.30 nats, responses grow to 4,000 tokens; AIME 2024
  36.8, MATH500 84.6, mean of the seven suites 52.2 as printed (51.6).
  Source: [1], table 2 and its scripts.
  """
  return parts.with_kl_cov(qwen2_5_32b_grpo())


def qwen2_5_72b_kl_cov() -> Recipe:
  """KL-Cov on Qwen2.5-72B: a penalty on the tokens of highest covariance.

  Run: covrl train --config=reasoning:qwen2_5_72b_kl_cov --workdir=runs/qwen2_5_72b_kl_cov
  Hardware: 512 chips of TPU v5p (8x8x8).
  Expect: no figures are published for this model.
  Source: [1], its numbers for 32 billion parameters; the mesh is covrl's own.
  """
  recipe = qwen2_5_32b_kl_cov()
  config = recipe.config
  config.pretrained = 'Qwen/Qwen2.5-72B'
  config.mesh.data = 1
  config.mesh.fsdp = 128
  config.mesh.tensor = 4
  config.rollout.tensor = 8
  config.train.remat = 'cheap'
  return recipe


def qwen2_5_0_5b_gsm8k() -> Recipe:
  """KL-Cov on Qwen2.5-0.5B and GSM8K: the smallest run of a pretrained policy.

  Run: covrl train --config=reasoning:qwen2_5_0_5b_gsm8k --workdir=runs/qwen2_5_0_5b_gsm8k
  Hardware: 8 chips of TPU v5e.
  Expect: reward rises from the first iterations on; no published figures.
  Source: [1] for the method; the sizes are covrl's own.
  """
  recipe = qwen2_5_7b_kl_cov()
  config = recipe.config
  config.pretrained = 'Qwen/Qwen2.5-0.5B-Instruct'
  config.data.train = 'data/gsm8k-train.jsonl'
  config.rollout.prompts_per_iteration = 64
  config.rollout.max_prompt_length = 512
  config.rollout.max_response_length = 1024
  config.rollout.max_draws = 4
  config.rollout.tensor = 1
  config.train.schedule_iterations = config.train.iterations = 100
  config.train.sequences_per_update = 128
  config.train.micro_batches = 2
  config.train.learning_rate = 1e-6
  config.evaluate.suites = 'gsm8k'
  return recipe


def llama3_1_8b_kl_cov() -> Recipe:
  """KL-Cov on Llama 3.1 8B: a penalty on the tokens of highest covariance.

  Run: covrl train --config=reasoning:llama3_1_8b_kl_cov --workdir=runs/llama3_1_8b_kl_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy above GRPO's; no figures are published for this model.
  Source: [1], its settings for 7B.
  """
  return parts.with_model(
    qwen2_5_7b_kl_cov(), 'meta-llama/Llama-3.1-8B-Instruct'
  )


def mistral_7b_kl_cov() -> Recipe:
  """KL-Cov on Mistral 7B: a penalty on the tokens of highest covariance.

  Run: covrl train --config=reasoning:mistral_7b_kl_cov --workdir=runs/mistral_7b_kl_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy above GRPO's; no figures are published for this model.
  Source: [1], its settings for 7B.
  """
  return parts.with_model(
    qwen2_5_7b_kl_cov(), 'mistralai/Mistral-7B-Instruct-v0.3'
  )


def deepseek_math_7b_kl_cov() -> Recipe:
  """KL-Cov on DeepSeekMath 7B: a penalty on the tokens of highest covariance.

  Run: covrl train --config=reasoning:deepseek_math_7b_kl_cov --workdir=runs/deepseek_math_7b_kl_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: entropy above GRPO's; no figures are published for this model.
  Source: [1], its settings for 7B.
  """
  recipe = parts.with_model(
    qwen2_5_7b_kl_cov(), 'deepseek-ai/deepseek-math-7b-instruct'
  )
  # Its context is shorter than Qwen2.5's.
  recipe.config.rollout.max_response_length = 2048
  return recipe


def paper_7b_kl_cov(scope: Scope = 'batch') -> Recipe:
  """KL-Cov on Qwen2.5-7B exactly as published, by current statistics.

  Run: covrl train --config=reasoning:paper_7b_kl_cov --workdir=runs/paper_7b_kl_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: as `qwen2_5_7b_kl_cov`.
  Source: [1], table 2 and its scripts.
  """
  return parts.as_published(qwen2_5_7b_kl_cov(), parts.published_kl_cov(scope))


def paper_7b_clip_cov(scope: Scope = 'batch') -> Recipe:
  """Clip-Cov on Qwen2.5-7B exactly as published, by current statistics.

  Run: covrl train --config=reasoning:paper_7b_clip_cov --workdir=runs/paper_7b_clip_cov
  Hardware: 32 chips of TPU v5p (2x4x4).
  Expect: as `qwen2_5_7b_clip_cov`.
  Source: [1], table 2 and its scripts.
  """
  return parts.as_published(
    qwen2_5_7b_clip_cov(), parts.published_clip_cov(scope)
  )


def paper_32b_kl_cov(scope: Scope = 'batch') -> Recipe:
  """KL-Cov on Qwen2.5-32B exactly as published, by current statistics.

  Run: covrl train --config=reasoning:paper_32b_kl_cov --workdir=runs/paper_32b_kl_cov
  Hardware: 128 chips of TPU v5p (4x4x8).
  Expect: as `qwen2_5_32b_kl_cov`.
  Source: [1], table 2 and its scripts.
  """
  return parts.as_published(qwen2_5_32b_kl_cov(), parts.published_kl_cov(scope))


def paper_32b_clip_cov(scope: Scope = 'batch') -> Recipe:
  """Clip-Cov on Qwen2.5-32B exactly as published, by current statistics.

  Run: covrl train --config=reasoning:paper_32b_clip_cov --workdir=runs/paper_32b_clip_cov
  Hardware: 128 chips of TPU v5p (4x4x8).
  Expect: AIME 2024 32.3, MATH500 87.0, mean of the seven suites 50.3 as printed.
  Source: [1], table 2 and its scripts.
  """
  return parts.as_published(
    parts.with_clip_cov(qwen2_5_32b_grpo()), parts.published_clip_cov(scope)
  )


def verl_kl_cov(scope: Scope = 'batch') -> Recipe:
  """KL-Cov with verl's defaults: coefficient 0.1 (1 in its docstring).

  Run: covrl train --config=reasoning:verl_kl_cov --workdir=runs/verl_kl_cov
  Hardware: 128 chips of TPU v5p (4x4x8).
  Expect: a weaker penalty than published; no figures are published.
  Source: verl's `compute_policy_loss_kl_cov` and its configuration; batch sizes,
  lengths and optimiser are those of [1].
  """
  recipe = paper_32b_kl_cov(scope)
  recipe.config.entropy.coefficient = 0.1
  return recipe


def verl_clip_cov(scope: Scope = 'batch') -> Recipe:
  """Clip-Cov with verl's defaults: PPO's range [0.8, 1.2] instead of [0, 2].

  Run: covrl train --config=reasoning:verl_clip_cov --workdir=runs/verl_clip_cov
  Hardware: 128 chips of TPU v5p (4x4x8).
  Expect: no figures are published.
  Source: verl's `compute_policy_loss_clip_cov` and its configuration.
  """
  recipe = paper_32b_clip_cov(scope)
  recipe.config.train.clip_low = recipe.config.train.clip_high = 0.2
  return recipe
