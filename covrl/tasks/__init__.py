# SPDX-License-Identifier: Apache-2.0
"""Tasks: the problems a policy is trained on and how responses are graded."""
