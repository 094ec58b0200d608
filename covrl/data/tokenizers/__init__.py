# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: their interface, tokenizer.json and sentencepiece models."""
