# SPDX-License-Identifier: Apache-2.0
"""Loads and saves pretrained policies: Hugging Face directories, PEFT adapters."""

from covrl.pretrained.adapters import (
  base_model_directory as base_model_directory,
)
from covrl.pretrained.adapters import load_adapters as load_adapters
from covrl.pretrained.adapters import lora_config as lora_config
from covrl.pretrained.adapters import save_adapters as save_adapters
from covrl.pretrained.convert import as_pretrained as as_pretrained
from covrl.pretrained.convert import convert as convert
from covrl.pretrained.convert import with_source_dtype as with_source_dtype
from covrl.pretrained.load import load_params as load_params
from covrl.pretrained.load import load_policy as load_policy
from covrl.pretrained.load import load_pretrained as load_pretrained
from covrl.pretrained.policy import PretrainedPolicy as PretrainedPolicy
from covrl.pretrained.positions import max_positions as max_positions
from covrl.pretrained.save import save_pretrained as save_pretrained
from covrl.pretrained.tokenizer import load_chat_template as load_chat_template
from covrl.pretrained.tokenizer import load_tokenizer as load_tokenizer
