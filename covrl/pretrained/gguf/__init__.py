# SPDX-License-Identifier: Apache-2.0
"""Reads models of the Llama and Qwen families from GGUF files.

References:
  GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from covrl.pretrained.gguf.directory import gguf_directory as gguf_directory
from covrl.pretrained.gguf.directory import is_gguf as is_gguf
from covrl.pretrained.gguf.directory import linked_gguf as linked_gguf
from covrl.pretrained.gguf.tensors import GgufTensors as GgufTensors
