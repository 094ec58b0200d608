# SPDX-License-Identifier: Apache-2.0
"""Config sections of problems, their scoring and evaluation."""

import dataclasses
from typing import Annotated, Literal

from covrl.config.bounds import (
  Bounds,
  NonNegative,
  NonNegativeFloat,
  Positive,
  PositiveFloat,
  Share,
)
from covrl.config.errors import ConfigError


@dataclasses.dataclass(kw_only=True, slots=True)
class CountdownConfig:
  """Countdown problems; see `covrl.data.generated.countdown`.

  Attributes:
    seed: seed of the training problems; the held-out problems do not depend on
      it, so that runs with different seeds are evaluated on the same ones.
    min_numbers: fewest numbers in a problem.
    max_numbers: most numbers in a problem.
    min_value: smallest number.
    max_value: largest number.
    min_target: smallest target.
    max_target: largest target.
    held_out: number of problems reserved for evaluation, never trained on.
    size: number of problems in an epoch.
  """

  seed: int = 0
  min_numbers: Positive = 3
  max_numbers: Positive = 4
  min_value: Positive = 1
  max_value: Positive = 20
  min_target: Positive = 1
  max_target: Positive = 100
  held_out: NonNegative = 1024
  size: Annotated[int, Bounds(1, (1 << 31) - 1)] = 1 << 20

  def __post_init__(self) -> None:
    self.check()

  def check(self) -> None:
    """Checks that every range contains a value.

    Raises:
      ConfigError: a range is empty, or the problems have a single number.
    """
    for low, high in (
      ('min_numbers', 'max_numbers'),
      ('min_value', 'max_value'),
      ('min_target', 'max_target'),
    ):
      if not 1 <= getattr(self, low) <= getattr(self, high):
        raise ConfigError(
          f'countdown must have 1 <= {low} <= {high}, got'
          f' {low}={getattr(self, low)} and {high}={getattr(self, high)}'
        )
    if self.min_numbers < 2:
      raise ConfigError(
        f'countdown must have min_numbers >= 2, got {self.min_numbers}'
      )
    if not 0 < self.size < 1 << 31:
      raise ConfigError(
        f'countdown must have 0 < size < 2**31, got size={self.size}'
      )


@dataclasses.dataclass(kw_only=True, slots=True)
class DataConfig:
  """Problems from files, for text tasks; see `covrl.tasks`.

  Attributes:
    train: files of training problems, comma-separated; `*` matches any part of
      a name. All problems are equally likely unless files have weights:
      `math-*.parquet=3,code.jsonl=1`. An entry without a weight beside others
      with one has the weight 1, which the files that match it share.
    schema: names and types of the files' columns, a name in
      `covrl.data.SCHEMAS`; detected if empty. Other columns are not read.
    template: prompt template that contains `{question}`; the model's own chat
      template if empty.
    template_variables: variables of the chat template, as a JSON object such
      as `{"enable_thinking": false}`; empty for none.
    system: system message of conversations without one; empty for none.
    math_instruction: text appended to math questions that a file has without an
      instruction; to conversations only with `bare_questions`.
    code_instruction: the same of programming questions.
    bare_questions: whether to remove the instructions that a file puts around
      its questions, and to append `math_instruction` or `code_instruction`. Of
      a conversation only the last user message remains.
    deduplicate: whether to drop repeated questions.
    overlap_words: drop training problems whose question, or a message of whose
      prompt, is that of an evaluation problem, contains one of at least 5 words,
      or shares this many consecutive words with one (decontamination), unless
      several problems of its set have these words; 0 keeps them.
    pass_rates: results of `covrl evaluate` on these problems, for the two
      bounds below, with one rate for each question (of a conversation its last
      user message); if empty, pass rates stored in the files are used.
    min_pass_rate: smallest pass rate of a training problem.
    max_pass_rate: largest pass rate of a training problem.
    checked_programs: number of programming problems, evenly spaced, whose
      reference solutions must pass their own tests before a run starts; math
      references are all checked.
  """

  train: str = ''
  schema: str = ''
  template: str = ''
  template_variables: str = ''
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
  overlap_words: NonNegative = 13
  pass_rates: str = ''
  min_pass_rate: Share = 0.0
  max_pass_rate: Share = 1.0
  checked_programs: NonNegative = 64


@dataclasses.dataclass(kw_only=True, slots=True)
class RewardConfig:
  """Scoring of responses.

  Attributes:
    workers: number of worker processes; more than processors save no time.
      Programs in responses that wait for a processor are not charged for it.
    timeout: seconds after which the scoring of a response is aborted.
    max_failures: share of an iteration's responses whose scoring may time out
      or crash before the run stops; they are masked, not scored 0.
    sandbox: sandbox backend for programs in responses; empty for the strongest
      that is available. Programs run unsandboxed only if that is chosen here.
    sandbox_url: address of the server of the backend 'remote'; empty for none.
    packages: installed packages that these programs may import, separated by
      commas, their dependencies included. Empty for none.
    environment: environment variables that reward workers receive besides
      those of `covrl.rewards.ENVIRONMENT`, separated by commas.
    network: whether reward functions may use the network.
    format: regular expression; text tasks reward responses that match it as a
      whole. Empty for none.
    format_weight: weight of the format reward.
    overlong_buffer: tokens below the response length limit over which a
      penalty grows to 1 (DAPO), in text tasks; 0 for none.
    function: further reward function of text tasks, `module:function` of a file
      beside the recipe or in the working directory, which is kept with the run,
      or of an installed module; empty for none.
    function_weight: weight of that function.
  """

  workers: Annotated[int, Bounds(1, 1024)] = 2
  timeout: PositiveFloat = 5.0
  max_failures: Share = 0.05
  sandbox: Literal['', 'bubblewrap', 'landlock', 'remote', 'unsandboxed'] = ''
  sandbox_url: str = ''
  packages: str = 'numpy'
  environment: str = ''
  network: bool = False
  format: str = ''
  format_weight: float = 0.1
  overlong_buffer: NonNegative = 0
  function: str = ''
  function_weight: float = 1.0

  @property
  def package_names(self) -> tuple[str, ...]:
    """Names in `packages`."""
    return _split(self.packages)

  @property
  def environment_names(self) -> tuple[str, ...]:
    """Names in `environment`."""
    return _split(self.environment)


@dataclasses.dataclass(kw_only=True, slots=True)
class EvaluateConfig:
  """Evaluation: greedy accuracy, mean@k and pass@k.

  Attributes:
    every: iterations between evaluations; there is also one before and one after
      training.
    problems: number of held-out problems to evaluate on.
    samples: k, responses per held-out problem.
    temperature: sampling temperature on held-out problems.
    suites: evaluation suites, comma-separated, for text tasks.
    suite_directory: directory of the suites' files.
    suite_problems: problems per suite, at most; 0 for all.
    suite_samples: responses per problem of a suite; −1 for the published number,
      see `covrl.data.SUITES`.
    suite_temperature: sampling temperature on suites; −1 for the published one.
  """

  every: Positive = 15
  problems: Positive = 1024
  samples: Positive = 8
  temperature: NonNegativeFloat = 1.0
  suites: str = ''
  suite_directory: str = 'data/suites'
  suite_problems: NonNegative = 0
  suite_samples: Annotated[int, Bounds(1, special=-1)] = -1
  suite_temperature: Annotated[float, Bounds(0, special=-1)] = -1.0


def _split(names: str) -> tuple[str, ...]:
  """Splits names that are separated by commas."""
  return tuple(name.strip() for name in names.split(',') if name.strip())
