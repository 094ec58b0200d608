# SPDX-License-Identifier: Apache-2.0
"""Decoder-only transformers: configuration, modules, kernels, LoRA, experts."""

from covrl.models.cache import DecodeCache as DecodeCache
from covrl.models.cache import PromptCache as PromptCache
from covrl.models.config import Experts as Experts
from covrl.models.config import ModelConfig as ModelConfig
from covrl.models.config import countdown as countdown
from covrl.models.config import tiny as tiny
from covrl.models.experts import ExpertRecordSpec as ExpertRecordSpec
from covrl.models.experts import RoutingStats as RoutingStats
from covrl.models.experts import load_balancing_loss as load_balancing_loss
from covrl.models.lora import Lora as Lora
from covrl.models.policy import Policy as Policy
from covrl.models.rope import LinearScaling as LinearScaling
from covrl.models.rope import Llama3Scaling as Llama3Scaling
from covrl.models.rope import RopeScaling as RopeScaling
from covrl.models.rope import YarnScaling as YarnScaling
from covrl.models.value_head import add_value_head as add_value_head
from covrl.models.value_head import value_config as value_config
