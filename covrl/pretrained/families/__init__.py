# SPDX-License-Identifier: Apache-2.0
"""Model families: their fields of config.json and names of tensors."""
