# SPDX-License-Identifier: Apache-2.0
"""Pretrained policies in and out, as Hugging Face directories."""

from covrl.pretrained.adapters import base_of as base_of
from covrl.pretrained.adapters import load_adapters as load_adapters
from covrl.pretrained.adapters import lora_of as lora_of
from covrl.pretrained.adapters import save_adapters as save_adapters
from covrl.pretrained.convert import convert as convert
from covrl.pretrained.convert import with_files as with_files
from covrl.pretrained.load import load_params as load_params
from covrl.pretrained.load import load_policy as load_policy
from covrl.pretrained.load import load_pretrained as load_pretrained
from covrl.pretrained.policy import PretrainedPolicy as PretrainedPolicy
from covrl.pretrained.save import save_pretrained as save_pretrained
from covrl.pretrained.tokenizer import load_chat_template as load_chat_template
from covrl.pretrained.tokenizer import load_tokenizer as load_tokenizer
