# SPDX-License-Identifier: Apache-2.0
"""Methods: entropy control as chains of token transforms."""
