# SPDX-License-Identifier: Apache-2.0
"""Sources, tokenizers and the Grain pipeline."""
