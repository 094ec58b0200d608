# SPDX-License-Identifier: Apache-2.0
"""Configuration: fields, recipes and overrides.

A recipe is a function without arguments that returns a `Recipe`: a `Config`, and
functions that build the task, model, loss, token chain and optimisers from it.
Variants are made by `dataclasses.replace`:

  import dataclasses

  import covrl
  from covrl.config import Recipe
  from covrl.recipes import countdown

  def forking_tokens() -> Recipe:
    \"\"\"GRPO on the tokens of highest entropy.\"\"\"
    return dataclasses.replace(
      countdown.grpo(), token_tx=lambda config: covrl.forking_tokens(0.2)
    )
"""

from covrl.config.arithmetic import ArithmeticConfig as ArithmeticConfig
from covrl.config.conversion import flatten as flatten
from covrl.config.conversion import from_dict as from_dict
from covrl.config.conversion import unknown_fields as unknown_fields
from covrl.config.conversion import version_difference as version_difference
from covrl.config.critic import CriticConfig as CriticConfig
from covrl.config.errors import ConfigError as ConfigError
from covrl.config.fields import CheckpointConfig as CheckpointConfig
from covrl.config.fields import Config as Config
from covrl.config.fields import EntropyConfig as EntropyConfig
from covrl.config.fields import LoggingConfig as LoggingConfig
from covrl.config.fields import LoraConfig as LoraConfig
from covrl.config.fields import MeshConfig as MeshConfig
from covrl.config.fields import RolloutConfig as RolloutConfig
from covrl.config.fields import TrainConfig as TrainConfig
from covrl.config.fields import WarmStartConfig as WarmStartConfig
from covrl.config.help import field_help as field_help
from covrl.config.loading import load as load
from covrl.config.loading import recipes as recipes
from covrl.config.loading import restore as restore
from covrl.config.mazes import MazeConfig as MazeConfig
from covrl.config.prime import PrimeConfig as PrimeConfig
from covrl.config.problems import CountdownConfig as CountdownConfig
from covrl.config.problems import DataConfig as DataConfig
from covrl.config.problems import EvaluateConfig as EvaluateConfig
from covrl.config.problems import RewardConfig as RewardConfig
from covrl.config.recipe import CHANGEABLE_ON_RESUME as CHANGEABLE_ON_RESUME
from covrl.config.recipe import Recipe as Recipe
from covrl.config.recorded_reads import recorded_reads as recorded_reads
from covrl.config.validation import check as check
