# SPDX-License-Identifier: Apache-2.0
"""The configuration of a run: dataclasses of plain values.

Bounds stand beside the fields that have them, as metadata of their types.
"""

import dataclasses
from dataclasses import field
from typing import Annotated, Literal

from covrl.config.arithmetic import ArithmeticConfig
from covrl.config.bounds import (
  AxisSize,
  Bounds,
  LearningRate,
  NonNegative,
  NonNegativeFloat,
  Positive,
  PositiveFloat,
  PositiveShare,
  Seed,
  Share,
)
from covrl.config.critic import CriticConfig
from covrl.config.errors import ConfigError
from covrl.config.mazes import MazeConfig
from covrl.config.prime import PrimeConfig
from covrl.config.problems import (
  CountdownConfig,
  DataConfig,
  EvaluateConfig,
  RewardConfig,
)


@dataclasses.dataclass(kw_only=True, slots=True)
class MeshConfig:
  """Sizes of the mesh axes; one of them may be −1: all remaining devices.

  Attributes:
    data: replicas of the parameters, each for rows of its own; several TPU
      slices are replicas.
    fsdp: shards of parameters and rows.
    tensor: shards of heads, hidden units and vocabulary.
    expert: shards of a mixture's experts, and of rows.
    context: shards of each row's tokens, for long responses.
  """

  data: AxisSize = 1
  fsdp: AxisSize = -1
  tensor: AxisSize = 1
  expert: AxisSize = 1
  context: AxisSize = 1


@dataclasses.dataclass(kw_only=True, slots=True)
class RolloutConfig:
  """Sampling of responses.

  Attributes:
    prompts_per_iteration: distinct prompts per iteration.
    responses_per_prompt: responses per prompt, the group size of
      group-relative advantages.
    max_prompt_length: prompt length limit in tokens; longer prompts are an
      error.
    max_response_length: response length limit in tokens, with end of sequence.
    temperature: temperature of sampling, of all statistics and of the entropy.
    top_p: nucleus sampling threshold; below 1 importance weights are biased.
    top_k: number of most likely tokens to sample from; 0 for all.
    min_p: least probability of a sampled token, relative to the likeliest
      token's; 0 for all tokens.
    tensor: devices that share one copy of the sampler's weights; 0 for
      `mesh.tensor`.
    slots: largest number of responses that are decoded together, which bounds
      the memory of the KV cache; others wait in a queue. 0 for all.
    segment: tokens of each response that one compiled call decodes; after it
      the host drops slots that are no longer needed.
    prefill_chunk: tokens of each prompt that are processed together, which bounds
      the memory of a prefill's activations; 0 for whole prompts.
    cache_dtype: type of the KV cache: the model's, or integers of 8 bits, for
      which the sampler's probabilities differ from the trainer's. Importance
      weights correct for it; evaluations of the run are of the model with this cache.
    max_draws: draws of prompts per iteration, at most, until
      `prompts_per_iteration` groups have unequal rewards (dynamic sampling) and
      pass the filters below; 1 and no filter train on all groups of a single
      draw.
    admission: with several draws, when their prompts are begun: a whole draw
      once the draw before it has its rewards ('draws'), or each prompt as soon as
      slots are free ('slots'), until enough groups pass. The groups to train
      on are the same. 'slots' needs `max_draws` above 1 and `pipeline` 0.
    min_accuracy: least share of right responses, those with a reward above 0.5,
      of a group to train on.
    max_accuracy: largest share of right responses of a group to train on.
    drop_truncated_groups: whether groups with a response that the length limit ended
      are not trained on.
    fill_groups: whether groups that do not pass the filters are trained on, too,
      where fewer than `prompts_per_iteration` pass; otherwise the rest is masked out.
    pipeline: iterations that sampling is ahead of training: 0, or 1 to sample an
      iteration's responses before the updates of the iteration before, so that
      their rewards are computed during these. Needs importance weights.
    carried_groups: largest number of groups sampled beyond
      `prompts_per_iteration` (partial rollouts); those unfinished when enough are
      complete continue in the next iteration with newer weights. Needs `pipeline` 1, `max_draws` 1
      and one process.
    max_staleness: iterations between the first token of a carried group and its
      training, at most; sampling waits for groups that would exceed it.
  """

  prompts_per_iteration: Positive = 64
  responses_per_prompt: Positive = 8
  max_prompt_length: Positive = 8
  max_response_length: Positive = 12
  temperature: Annotated[
    float, Bounds(0, is_open=True, purpose='to learn from samples')
  ] = 1.0
  top_p: PositiveShare = 1.0
  top_k: NonNegative = 0
  min_p: Share = 0.0
  tensor: NonNegative = 0
  slots: NonNegative = 0
  segment: Positive = 16
  prefill_chunk: NonNegative = 0
  cache_dtype: Literal['model', 'int8'] = 'model'
  max_draws: Positive = 1
  admission: Literal['draws', 'slots'] = 'draws'
  min_accuracy: Share = 0.0
  max_accuracy: Share = 1.0
  drop_truncated_groups: bool = False
  fill_groups: bool = False
  pipeline: Annotated[int, Bounds(0, 1)] = 0
  carried_groups: NonNegative = 0
  max_staleness: Annotated[int, Bounds(2)] = 4


@dataclasses.dataclass(kw_only=True, slots=True)
class TrainConfig:
  """Policy updates.

  Attributes:
    iterations: number of iterations: one rollout and its updates each.
    schedule_iterations: iterations over which schedules run, independent of
      `iterations`: a run that is extended keeps this number, and after it
      schedules keep their last values; 0 in recipes without schedules.
    sequences_per_update: sequences per optimiser update.
    packed_rows: rows into which an update's sequences are packed if they fit,
      as the metric `packed` records; 0 disables packing.
    micro_batches: micro-batches per update.
    remat: activations that the backward pass recomputes; see
      `covrl.models.remat`.
    offload_optimizer: whether optimiser state is kept in host memory between
      updates.
    learning_rate: learning rate of the parameter chain, constant.
    max_gradient_norm: global norm to which gradients are clipped.
    weights: aggregation of token losses; see `covrl.token_weights`.
    clip_low: PPO's clip range below 1.
    clip_high: PPO's clip range above 1.
    balance: coefficient of the load-balancing loss of a mixture of experts.
    routing_replay: whether the trainer routes each token to the experts that the
      sampler chose for it, with the gates of its own router (R3,
      arXiv:2510.11370); the model must be a mixture of experts.
    max_skipped_updates: number of updates in a row that are skipped, because a
      gradient or an updated parameter is not finite, at which the run ends.
    keep_reference: whether to keep the policy after the warm start as the
      reference policy, for penalties that read `ref_logprobs`.
    reset_reference_every: iterations after which the current policy replaces
      the reference policy; 0 for never.
  """

  iterations: Positive = 30
  schedule_iterations: NonNegative = 0
  sequences_per_update: Positive = 128
  packed_rows: NonNegative = 0
  micro_batches: Positive = 1
  remat: Literal['nothing', 'cheap', 'gate', 'mlp', 'everything', 'host'] = (
    'nothing'
  )
  offload_optimizer: bool = False
  learning_rate: LearningRate = 3e-4
  max_gradient_norm: PositiveFloat = 1.0
  weights: Literal[
    'token-mean',
    'token-sum',
    'sequence-mean-token-mean',
    'sequence-mean-token-sum',
    'constant-length',
  ] = 'token-mean'
  clip_low: Share = 0.2
  clip_high: NonNegativeFloat = 0.2
  balance: NonNegativeFloat = 0.0
  routing_replay: bool = False
  max_skipped_updates: Positive = 10
  keep_reference: bool = False
  reset_reference_every: NonNegative = 0


@dataclasses.dataclass(kw_only=True, slots=True)
class LoraConfig:
  """Low-rank adapters of the initial policy; only they are trained and saved.

  Attributes:
    rank: rank of the adapters; 0 trains all parameters instead.
    alpha: adapters are scaled by alpha / rank.
    targets: adapted matrices of each layer, comma-separated.
  """

  rank: NonNegative = 0
  alpha: PositiveFloat = 32.0
  targets: str = 'query,key,value,output,gate,up,down'


@dataclasses.dataclass(kw_only=True, slots=True)
class EntropyConfig:
  """Numbers for the token chain, which the recipe builds from them.

  Attributes:
    fraction: fraction of an update's response tokens to select.
    coefficient: coefficient of the penalty or bonus, before any annealing.
    covariance_low: Clip-Cov's lower bound on the covariance.
    covariance_high: Clip-Cov's upper bound on the covariance.
    initial_target: a controller's target entropy at the start, in nats.
    target: a controller's target entropy at the end, in nats.
    selection_source: whether selection ranks by the statistics from before the
      rollout's updates (old) or by the current ones.
  """

  fraction: PositiveShare = 2e-3
  coefficient: float = 1.0
  covariance_low: float = 1.0
  covariance_high: float = 5.0
  initial_target: NonNegativeFloat = 0.4
  target: NonNegativeFloat = 0.3
  selection_source: Literal['old', 'current'] = 'old'


@dataclasses.dataclass(kw_only=True, slots=True)
class WarmStartConfig:
  """Supervised training on solved problems before reinforcement learning.

  Attributes:
    steps: optimiser updates; 0 for no warm start.
    batch_size: examples per update.
    learning_rate: peak learning rate.
    from_run: directory of a run with the same warm-start fields, whose result
      is used instead of training; empty for none.
  """

  steps: NonNegative = 1000
  batch_size: Positive = 64
  learning_rate: LearningRate = 3e-3
  from_run: str = ''


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
  """Checkpoints.

  Attributes:
    every: iterations between checkpoints; another one precedes every evaluation.
    every_updates: updates between further checkpoints within an iteration; 0
      for none.
    warm_start_every: steps of the warm start between its checkpoints; 0 for none
      but that of its end.
    keep: number of newest checkpoints to keep.
    allow_unknown_data: whether to resume a run with problems that have no
      fingerprint, so that changes remain unnoticed.
  """

  every: Positive = 10
  every_updates: NonNegative = 0
  warm_start_every: NonNegative = 200
  keep: Positive = 2
  allow_unknown_data: bool = False


@dataclasses.dataclass(kw_only=True, slots=True)
class LoggingConfig:
  """Files written besides `metrics.jsonl`.

  Attributes:
    samples_every: iterations between logged samples.
    samples: responses logged each time.
    warm_start_every: warm-start steps between metrics lines.
    entropy_change_every: updates between measurements of the entropy change
      that an update causes, which take about as long as an update; 0 for none.
    diagnostics_every: updates between measurements of top means and quantiles of
      the covariance and of predicted entropy changes; 0 for none. Between them
      moments of the policy are computed only for a loss or token chain that
      reads them.
    tensorboard: whether to write TensorBoard events.
    wandb_project: Weights & Biases project; empty for none. A resumed run goes on
      in its run there.
  """

  samples_every: Positive = 10
  samples: NonNegative = 16
  warm_start_every: Positive = 50
  entropy_change_every: NonNegative = 10
  diagnostics_every: NonNegative = 1
  tensorboard: bool = True
  wandb_project: str = ''


@dataclasses.dataclass(kw_only=True, slots=True)
class Config:
  """The configuration of a run.

  Attributes:
    seed: seed of all random numbers.
    pretrained: initial model: a directory in the format of transformers, a PEFT
      adapter, a GGUF file or a name on the Hugging Face hub; empty for random
      parameters.
  """

  seed: Seed = 0
  pretrained: str = ''
  mesh: MeshConfig = field(default_factory=MeshConfig)
  countdown: CountdownConfig = field(default_factory=CountdownConfig)
  maze: MazeConfig = field(default_factory=MazeConfig)
  arithmetic: ArithmeticConfig = field(default_factory=ArithmeticConfig)
  data: DataConfig = field(default_factory=DataConfig)
  rollout: RolloutConfig = field(default_factory=RolloutConfig)
  train: TrainConfig = field(default_factory=TrainConfig)
  critic: CriticConfig = field(default_factory=CriticConfig)
  prime: PrimeConfig = field(default_factory=PrimeConfig)
  lora: LoraConfig = field(default_factory=LoraConfig)
  entropy: EntropyConfig = field(default_factory=EntropyConfig)
  warm_start: WarmStartConfig = field(default_factory=WarmStartConfig)
  evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
  checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
  rewards: RewardConfig = field(default_factory=RewardConfig)
  logging: LoggingConfig = field(default_factory=LoggingConfig)

  @property
  def sequences_per_iteration(self) -> int:
    """Number of responses sampled in an iteration."""
    return (
      self.rollout.prompts_per_iteration * self.rollout.responses_per_prompt
    )

  @property
  def updates_per_iteration(self) -> int:
    """Number of optimiser updates per iteration."""
    return self.sequences_per_iteration // self.train.sequences_per_update

  @property
  def scores_rollouts(self) -> bool:
    """Whether the trainer scores sampled tokens before the updates.

    Scoring is a forward pass that computes their log-probabilities and entropy; it
    has nothing to do with rewards. A single update computes the same statistics
    itself, so that scoring is left out unless all groups of several draws are scored
    for the rollout's metrics, a KL penalty in the reward or process rewards
    relative to the old policy read the statistics before the update, or a critic's
    warm-up skips the update.
    """
    return (
      self.updates_per_iteration > 1
      or self._scored_draws > 1
      or self.critic.kl_coefficient > 0
      or self.critic.warm_up > 0
      or self.prime.reference == 'old'
    )

  @property
  def scoring_passes(self) -> int:
    """Forward passes over an iteration's sequences, outside of updates.

    One computes `old_logprobs`, the other those of the reference policy.
    """
    policies = int(self.scores_rollouts) + int(self.train.keep_reference)
    return policies * self._scored_draws

  @property
  def _scored_draws(self) -> int:
    """Draws whose tokens are scored; one with `rollout.admission = 'slots'`."""
    rollout = self.rollout
    return rollout.max_draws if rollout.admission == 'draws' else 1

  @property
  def total_updates(self) -> int:
    """Number of optimiser updates of the whole run; grows if it is extended."""
    return self.train.iterations * self.updates_per_iteration

  @property
  def schedule_updates(self) -> int:
    """Number of optimiser updates over which schedules run.

    Raises:
      ConfigError: the recipe does not state `train.schedule_iterations`.

    >>> Config(train=TrainConfig(schedule_iterations=30)).schedule_updates
    120
    """
    if self.train.schedule_iterations == 0:
      raise ConfigError(
        'train.schedule_iterations must be at least 1 in a recipe with a'
        ' schedule, got 0'
      )
    return self.train.schedule_iterations * self.updates_per_iteration
