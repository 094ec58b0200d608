# SPDX-License-Identifier: Apache-2.0
"""What a run is, in plain numbers and strings."""

import dataclasses


class ConfigError(ValueError):
  """A configuration that cannot be run, in one sentence."""


@dataclasses.dataclass(kw_only=True, slots=True)
class MeshConfig:
  """Sizes of the mesh axes; −1 takes the devices that are left.

  Attributes:
    data: replicas of the parameters, each with rows of its own; slices of TPUs
      are among them.
    fsdp: parts that parameters and rows are split into.
    tensor: parts that heads, hidden units and the vocabulary are split into.
    expert: parts that a mixture's experts, and rows, are split into.
    context: parts that each row's tokens are split into, for long responses.
  """

  data: int = 1
  fsdp: int = -1
  tensor: int = 1
  expert: int = 1
  context: int = 1


@dataclasses.dataclass(kw_only=True, slots=True)
class TaskConfig:
  """Problems to learn from.

  Attributes:
    min_numbers: fewest numbers of a problem.
    max_numbers: most numbers of a problem.
    max_value: largest number given.
    max_target: largest number to make.
    held_out: problems set apart for evaluation, never trained on.
    seed: of the problems; runs of other seeds share the held-out set.
  """

  min_numbers: int = 3
  max_numbers: int = 4
  max_value: int = 12
  max_target: int = 60
  held_out: int = 1024
  seed: int = 0


@dataclasses.dataclass(kw_only=True, slots=True)
class DataConfig:
  """Problems from files, for tasks of text; see `covrl.train.text_task`.

  Attributes:
    train: the files, separated by commas; `*` stands for any part of a name.
      Every problem is as likely as any other, unless files have weights:
      `math-*.parquet=3,code.jsonl=1`.
    layout: of their columns, see `covrl.data.LAYOUTS`; recognised if empty.
    template: text with `{question}` in it; the model's own template of
      conversations if empty.
    system: the first message of a conversation that has none; empty for none.
    math_instruction: said behind a question of mathematics that is none yet.
    code_instruction: the same of programming.
    bare_questions: whether the instructions that a file puts around its
      questions, as a conversation, are left out in favour of these.
    deduplicate: whether of equal questions only the first is used.
    overlap_words: how many words in a row a question may not share with one of
      an evaluation set; 0 for any number.
    pass_rates: results that `covrl evaluate` wrote of these problems; without
      them the files' own are read.
    min_pass_rate: problems that are solved less often are left out.
    max_pass_rate: problems that are solved more often are left out.
    checked_programs: solutions of programming problems, evenly spaced, that
      must pass their own tests before a run begins. Of mathematics every
      reference is checked.
  """

  train: str = ''
  layout: str = ''
  template: str = ''
  system: str = ''
  math_instruction: str = (
    'Please reason step by step, and put your final answer within \\boxed{}.'
  )
  code_instruction: str = (
    'Please reason step by step, and put your program in Python into a block'
    ' that begins with ```python.'
  )
  bare_questions: bool = False
  deduplicate: bool = True
  overlap_words: int = 13
  pass_rates: str = ''
  min_pass_rate: float = 0.0
  max_pass_rate: float = 1.0
  checked_programs: int = 64


@dataclasses.dataclass(kw_only=True, slots=True)
class RolloutConfig:
  """How responses are sampled.

  Attributes:
    prompts_per_iteration: unique prompts of an iteration.
    responses_per_prompt: the group size of group-relative advantages.
    max_prompt_length: tokens; longer prompts are refused.
    max_response_length: tokens, end-of-sequence included.
    temperature: of sampling, of all statistics and of the entropy.
    top_p: nucleus; below 1 the importance weights are biased, and a warning
      says so.
    top_k: 0 keeps the whole vocabulary.
    tensor: chips that share one copy of the sampler's weights; 0 is as many as
      `mesh.tensor`.
    max_draws: how often prompts may be drawn in an iteration until
      `prompts_per_iteration` of them have responses of different reward, the
      others being left out; 1 trains on whatever the first draw gives.
  """

  prompts_per_iteration: int = 64
  responses_per_prompt: int = 8
  max_prompt_length: int = 8
  max_response_length: int = 12
  temperature: float = 1.0
  top_p: float = 1.0
  top_k: int = 0
  tensor: int = 0
  max_draws: int = 1


@dataclasses.dataclass(kw_only=True, slots=True)
class TrainConfig:
  """How the policy is updated.

  Attributes:
    iterations: rollouts, each with its updates.
    sequences_per_update: sequences of an optimiser update.
    packed_rows: rows that an update's sequences are packed into, several a row,
      wherever they fit in so many; 0 gives each a row of its own.
    micro_batches: parts that an update's forward and backward run in.
    remat: what backward recomputes instead of keeping it; see
      `covrl.models.remat`.
    offload_optimizer: whether the parameter chain's state stays in the host's
      memory between updates.
    learning_rate: constant, of the parameter chain.
    max_gradient_norm: global norm that gradients are clipped to.
    weights: aggregation of tokens; see `covrl.token_weights`.
    low: PPO's clip range below 1.
    high: PPO's clip range above 1.
    balance: coefficient of the load-balancing loss of a mixture of experts.
    keep_reference: whether a copy of the policy as it was after the warm start
      is kept as reference, for penalties that read `ref_logprobs`.
    reset_reference_every: iterations after which the current policy becomes
      the reference; 0 never.
  """

  iterations: int = 30
  sequences_per_update: int = 128
  packed_rows: int = 0
  micro_batches: int = 1
  remat: str = 'nothing'
  offload_optimizer: bool = False
  learning_rate: float = 3e-4
  max_gradient_norm: float = 1.0
  weights: str = 'token-mean'
  low: float = 0.2
  high: float = 0.2
  balance: float = 0.0
  keep_reference: bool = False
  reset_reference_every: int = 0


@dataclasses.dataclass(kw_only=True, slots=True)
class LoraConfig:
  """Low-rank adapters: where there are any, all that is trained and saved.

  What they stand beside is what the run begins with: a pretrained model, or
  the policy after the warm start.

  Attributes:
    rank: of every adapter; 0 trains all parameters.
    alpha: an adapter is scaled by alpha / rank.
    targets: matrices of each layer that have one, comma-separated.
  """

  rank: int = 0
  alpha: float = 32.0
  targets: str = 'query,key,value,output,gate,up,down'


@dataclasses.dataclass(kw_only=True, slots=True)
class EntropyConfig:
  """The token chain's numbers; the chain itself is in the config file.

  Attributes:
    fraction: share of an update's response tokens that is selected.
    coefficient: of the penalty or bonus, at the start.
    low: Clip-Cov's lower bound on the covariance.
    high: Clip-Cov's upper bound.
    initial_target: entropy that a controller steers to at the start, in nats.
    target: the same at the end.
    selection_source: `'old'` or `'current'` statistics.
  """

  fraction: float = 2e-3
  coefficient: float = 1.0
  low: float = 1.0
  high: float = 5.0
  initial_target: float = 0.4
  target: float = 0.3
  selection_source: str = 'old'


@dataclasses.dataclass(kw_only=True, slots=True)
class WarmStartConfig:
  """Supervised training on solved examples before reinforcement learning.

  Attributes:
    steps: optimiser updates; 0 starts from random parameters.
    batch_size: examples of an update.
    learning_rate: peak of a cosine schedule.
    from_run: directory of a run whose warm start to take instead of training
      one; it must have been made with the same warm-start fields.
  """

  steps: int = 1000
  batch_size: int = 64
  learning_rate: float = 3e-3
  from_run: str = ''


@dataclasses.dataclass(kw_only=True, slots=True)
class EvaluateConfig:
  """Held-out evaluation: greedy, mean@k and pass@k.

  Attributes:
    every: iterations between evaluations; there is one before and one after.
    problems: how many of the held-out problems.
    samples: k, responses per problem for mean@k and pass@k.
    temperature: of these samples.
    suites: evaluation sets, separated by commas, for tasks of text.
    suite_directory: where their files are; nothing is downloaded.
    suite_problems: at most so many problems of each set; 0 is all.
    suite_samples: k of every set; −1 is as published, see
      `covrl.data.SUITES`.
    suite_temperature: of these samples; −1 is as published.
  """

  every: int = 15
  problems: int = 1024
  samples: int = 8
  temperature: float = 1.0
  suites: str = ''
  suite_directory: str = 'data/suites'
  suite_problems: int = 0
  suite_samples: int = -1
  suite_temperature: float = -1.0


@dataclasses.dataclass(kw_only=True, slots=True)
class CheckpointConfig:
  """When the run is saved.

  Attributes:
    every: iterations.
    every_updates: also after this many updates within an iteration; 0 never.
    keep: newest checkpoints kept.
  """

  every: int = 10
  every_updates: int = 0
  keep: int = 2


@dataclasses.dataclass(kw_only=True, slots=True)
class RewardConfig:
  """How responses are scored.

  Attributes:
    workers: processes.
    timeout: seconds a response may take before its worker is killed.
    max_failures: share of an iteration's responses whose scoring may time out
      or crash (they are masked, never scored 0) before the run stops.
    judge: how programs are held that are judged: `bubblewrap`, `landlock`,
      `remote` or `unsandboxed`; the best of the first three that can be had if
      empty. Nothing is run unsandboxed unless this says so.
    judge_url: of a remote judge; empty for none.
    format: of tasks of text: a regular expression that whole responses are
      rewarded for matching; empty for none.
    format_weight: what that counts.
    overlong_buffer: likewise: tokens before the longest response allowed, over
      which a penalty grows to 1 (DAPO); 0 for none.
    function: likewise: a reward of one's own, `module:function`, beside that
      of the right answer; empty for none.
    function_weight: what that counts.
  """

  workers: int = 2
  timeout: float = 5.0
  max_failures: float = 0.05
  judge: str = ''
  judge_url: str = ''
  format: str = ''
  format_weight: float = 0.1
  overlong_buffer: int = 0
  function: str = ''
  function_weight: float = 1.0


@dataclasses.dataclass(kw_only=True, slots=True)
class LoggingConfig:
  """What is written besides `metrics.jsonl`.

  Attributes:
    samples_every: iterations between kept samples.
    samples: responses kept each time.
    warm_start_every: warm-start steps between metric lines.
    entropy_change_every: updates between measurements of what an update did to
      the entropy of its own tokens, which cost about one more update; 0 never.
    tensorboard: whether to write TensorBoard events.
    wandb_project: Weights & Biases project; empty for none.
  """

  samples_every: int = 10
  samples: int = 16
  warm_start_every: int = 50
  entropy_change_every: int = 10
  tensorboard: bool = True
  wandb_project: str = ''


@dataclasses.dataclass(kw_only=True, slots=True)
class Config:
  """A run: plain fields only, all of them open to `--config.…` overrides.

  Attributes:
    seed: of everything that is drawn.
    pretrained: directory of the model to start from, as transformers writes
      it or PEFT an adapter, or a name on the Hugging Face hub; empty starts
      from random parameters.
  """

  seed: int = 0
  pretrained: str = ''
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
  train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
  lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
  entropy: EntropyConfig = dataclasses.field(default_factory=EntropyConfig)
  warm_start: WarmStartConfig = dataclasses.field(
    default_factory=WarmStartConfig
  )
  evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)
  checkpoint: CheckpointConfig = dataclasses.field(
    default_factory=CheckpointConfig
  )
  rewards: RewardConfig = dataclasses.field(default_factory=RewardConfig)
  logging: LoggingConfig = dataclasses.field(default_factory=LoggingConfig)

  @property
  def sequences_per_iteration(self) -> int:
    """Responses sampled in an iteration."""
    return (
      self.rollout.prompts_per_iteration * self.rollout.responses_per_prompt
    )

  @property
  def updates_per_iteration(self) -> int:
    """Optimiser updates made with an iteration's rollouts."""
    return self.sequences_per_iteration // self.train.sequences_per_update

  @property
  def total_updates(self) -> int:
    """Optimiser updates of the whole run, for schedules."""
    return self.train.iterations * self.updates_per_iteration
