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

from covrl.config.fields import CheckpointConfig as CheckpointConfig
from covrl.config.fields import Config as Config
from covrl.config.fields import ConfigError as ConfigError
from covrl.config.fields import DataConfig as DataConfig
from covrl.config.fields import EntropyConfig as EntropyConfig
from covrl.config.fields import EvaluateConfig as EvaluateConfig
from covrl.config.fields import LoggingConfig as LoggingConfig
from covrl.config.fields import LoraConfig as LoraConfig
from covrl.config.fields import MeshConfig as MeshConfig
from covrl.config.fields import RewardConfig as RewardConfig
from covrl.config.fields import RolloutConfig as RolloutConfig
from covrl.config.fields import TaskConfig as TaskConfig
from covrl.config.fields import TrainConfig as TrainConfig
from covrl.config.fields import WarmStartConfig as WarmStartConfig
from covrl.config.flat import flatten as flatten
from covrl.config.flat import from_dict as from_dict
from covrl.config.recipe import FACTORIES as FACTORIES
from covrl.config.recipe import RESUMABLE as RESUMABLE
from covrl.config.recipe import Recipe as Recipe
from covrl.config.recipe import import_recipe as import_recipe
from covrl.config.recipe import load as load
from covrl.config.validation import check as check
