# SPDX-License-Identifier: Apache-2.0
"""What a run is: plain numbers and strings, and the file that builds from them.

A config file has `get_config()`, which returns a `Config`, and factories that
build the real objects after overrides are applied, so that an algorithm is an
expression and every number in it can be swept from the command line:

  make_task(config)                 -> covrl.train.Task
  make_model(config, vocab_size)    -> covrl.models.ModelConfig
  make_advantages(config)           -> rewards, group ids -> advantages, [S]
  make_loss(config)                 -> a policy loss
  make_token_tx(config)             -> the token chain
  make_tx(config)                   -> the parameter chain
  make_warm_start_tx(config)        -> the parameter chain of the warm start
"""

import contextlib
import dataclasses
import difflib
import hashlib
import importlib.util
import json
import pathlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

FACTORIES = (
  'make_task',
  'make_model',
  'make_advantages',
  'make_loss',
  'make_token_tx',
  'make_tx',
  'make_warm_start_tx',
)

# Fields that may change when a run is resumed: how long and how often, not
# what is computed.
RESUMABLE = (
  'train.iterations',
  'checkpoint.',
  'logging.',
  'evaluate.suite_directory',
)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
  """A config file with its overrides applied.

  Attributes:
    name: the file's stem.
    config: the resolved fields.
    module: the file, for its factories.
    sources: text of the file and of the neighbours it imports, by file name.
  """

  name: str
  config: Config
  module: ModuleType
  sources: dict[str, str]

  @property
  def identity(self) -> str:
    """A hash of all that decides what the run computes."""
    fields = {
      name: value
      for name, value in flatten(self.config).items()
      if not name.startswith(RESUMABLE)
    }
    text = json.dumps([self.sources, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def as_json(self) -> dict[str, Any]:
    """The run's description, as its directory keeps it."""
    return {
      'name': self.name,
      'config': dataclasses.asdict(self.config),
      'source': self.sources[f'{self.name}.py'],
      'identity': self.identity,
    }


def load(path: str, overrides: Sequence[str] = ()) -> Recipe:
  """Reads a config file and applies overrides to its fields.

  Args:
    path: of a Python file with `get_config()` and the factories; it may import
      its neighbours in the same directory.
    overrides: as on the command line, `--config.train.iterations=300`.

  Raises:
    ConfigError: for a file that is none, an unknown field (with the nearest
      name), a wrong type or a contradiction.
  """
  file = pathlib.Path(path)
  module, sources = import_recipe(file)
  default = module.get_config()
  if not isinstance(default, Config):
    raise ConfigError(
      f'get_config() must return a covrl Config, {path} returns '
      f'{type(default).__name__}'
    )
  _check_names(default, overrides)
  config = _override(file, overrides)
  check(config)
  return Recipe(name=file.stem, config=config, module=module, sources=sources)


def import_recipe(file: pathlib.Path) -> tuple[ModuleType, dict[str, str]]:
  """Loads a config file and the texts it consists of.

  Raises:
    ConfigError: if it is no Python file, or lacks a factory.
  """
  if not file.is_file():
    raise ConfigError(f'--config must name a Python file, got {str(file)!r}')
  with _neighbours(file.parent):
    spec = importlib.util.spec_from_file_location(f'recipe_{file.stem}', file)
    if spec is None or spec.loader is None:
      raise ConfigError(f'--config must name a Python file, got {str(file)!r}')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    files = [file, *_imported_from(file.parent).values()]
  for factory in ('get_config', *FACTORIES):
    if not hasattr(module, factory):
      raise ConfigError(
        f'a config file must define {factory}(), {file} does not'
      )
  return module, {each.name: each.read_text() for each in files}


def _override(file: pathlib.Path, overrides: Sequence[str]) -> Config:
  """The file's config, with ml_collections' flags applied to it."""
  from absl import flags
  from ml_collections import config_flags

  values = flags.FlagValues()
  argv = ['covrl', f'--config={file}', *overrides]
  holder = config_flags.DEFINE_config_file(
    'config', flag_values=values, sys_argv=argv
  )
  try:
    with _neighbours(file.parent):
      values(argv)
  except (flags.Error, TypeError, ValueError, KeyError) as error:
    raise ConfigError(f'cannot apply the overrides: {error}') from None
  # The flag library loads the file under a name of its own; take its values.
  return from_dict(dataclasses.asdict(holder.value))


@contextlib.contextmanager
def _neighbours(directory: pathlib.Path) -> Iterator[None]:
  """Lets a config file import the files beside it, and forgets them after."""
  entry = str(directory.absolute())
  before = set(sys.modules)
  sys.path.insert(0, entry)
  try:
    yield
  finally:
    sys.path.remove(entry)
    for name in _imported_from(directory).keys() - before:
      del sys.modules[name]


def _imported_from(directory: pathlib.Path) -> dict[str, pathlib.Path]:
  """The modules that are files of a directory."""
  files = {
    name: pathlib.Path(file)
    for name, module in sys.modules.items()
    if (file := getattr(module, '__file__', None))
  }
  return {
    name: file
    for name, file in files.items()
    if file.parent == directory.absolute()
  }


def from_dict(fields: Mapping[str, Any]) -> Config:
  """A `Config` from nested plain fields, as `config.json` keeps them."""

  def build(kind: type, values: Mapping[str, Any]) -> Any:
    return kind(
      **{
        field.name: build(type(getattr(kind(), field.name)), value)
        if dataclasses.is_dataclass(getattr(kind(), field.name))
        else value
        for field in dataclasses.fields(kind)
        if (value := values.get(field.name)) is not None
      }
    )

  return build(Config, fields)


def flatten(config: Any, prefix: str = '') -> dict[str, Any]:
  """Dotted field names to plain values.

  >>> flatten(Config())['train.iterations']
  30
  """
  flat: dict[str, Any] = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    name = f'{prefix}{field.name}'
    if dataclasses.is_dataclass(value):
      flat.update(flatten(value, f'{name}.'))
    else:
      flat[name] = value
  return flat


def check(config: Config) -> None:
  """Refuses a configuration that contradicts itself, in one sentence."""
  positive = (
    'rollout.prompts_per_iteration',
    'rollout.responses_per_prompt',
    'rollout.max_prompt_length',
    'rollout.max_response_length',
    'rollout.max_draws',
    'train.iterations',
    'train.sequences_per_update',
    'train.micro_batches',
    'warm_start.batch_size',
    'evaluate.every',
    'evaluate.problems',
    'evaluate.samples',
    'checkpoint.every',
    'checkpoint.keep',
    'rewards.workers',
    'logging.samples_every',
    'logging.warm_start_every',
  )
  flat = flatten(config)
  for name in positive:
    if flat[name] < 1:
      raise ConfigError(f'{name} must be at least 1, got {flat[name]}')
  for name in (
    'seed',
    'rollout.tensor',
    'train.packed_rows',
    'lora.rank',
    'warm_start.steps',
    'checkpoint.every_updates',
    'train.reset_reference_every',
    'logging.entropy_change_every',
    'data.overlap_words',
    'data.checked_programs',
    'evaluate.suite_problems',
  ):
    if flat[name] < 0:
      raise ConfigError(f'{name} must be at least 0, got {flat[name]}')
  _check_divides(
    config.sequences_per_iteration,
    config.train.sequences_per_update,
    'the sequences of an iteration (rollout.prompts_per_iteration × '
    'rollout.responses_per_prompt)',
    'train.sequences_per_update',
  )
  _check_divides(
    config.train.sequences_per_update,
    config.train.micro_batches,
    'train.sequences_per_update',
    'train.micro_batches',
  )
  _check_divides(
    config.train.packed_rows,
    config.train.micro_batches,
    'train.packed_rows',
    'train.micro_batches',
  )
  if config.train.packed_rows > config.train.sequences_per_update:
    raise ConfigError(
      'train.packed_rows must be at most train.sequences_per_update, got '
      f'{config.train.packed_rows} of {config.train.sequences_per_update}'
    )
  if config.train.balance < 0:
    raise ConfigError(
      f'train.balance must be at least 0, got {config.train.balance:g}'
    )
  if config.train.reset_reference_every and not config.train.keep_reference:
    raise ConfigError(
      'train.reset_reference_every needs train.keep_reference, got '
      f'{config.train.reset_reference_every} without it'
    )
  if config.evaluate.problems > config.task.held_out:
    raise ConfigError(
      'evaluate.problems must be at most task.held_out, got '
      f'{config.evaluate.problems} of {config.task.held_out}'
    )
  if config.rollout.temperature <= 0:
    raise ConfigError(
      'rollout.temperature must be above 0 to learn from samples, got '
      f'{config.rollout.temperature:g}'
    )
  if not 0 < config.rollout.top_p <= 1:
    raise ConfigError(
      f'rollout.top_p must lie in (0, 1], got {config.rollout.top_p:g}'
    )
  if not 0 <= config.rewards.max_failures <= 1:
    raise ConfigError(
      'rewards.max_failures must lie in [0, 1], got '
      f'{config.rewards.max_failures:g}'
    )


def _check_divides(total: int, part: int, total_name: str, name: str) -> None:
  if total % part:
    raise ConfigError(
      f'{total_name} must be a multiple of {name}, got {total} and {part}'
    )


def _check_names(config: Config, overrides: Sequence[str]) -> None:
  """Refuses unknown fields, naming the nearest one."""
  known = flatten(config)
  for override in overrides:
    match = re.match(r'--?config\.([\w.]+)', override)
    if match and match.group(1) not in known:
      # What a field is called says more than where it is kept.
      leaf = match.group(1).rsplit('.', 1)[-1]
      leaves = {name.rsplit('.', 1)[-1]: name for name in known}
      near = difflib.get_close_matches(match.group(1), known, n=1, cutoff=0.5)
      near = near or [
        leaves[name] for name in difflib.get_close_matches(leaf, leaves, n=1)
      ]
      hint = f'; did you mean {near[0]}?' if near else ''
      raise ConfigError(f'there is no config field {match.group(1)!r}{hint}')
