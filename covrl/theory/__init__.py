# SPDX-License-Identifier: Apache-2.0
"""The theory lab: tabular policies and one executable check per claim.

The paper is `A Comparative Theoretical Analysis of Entropy Control Methods in
Reinforcement Learning <https://arxiv.org/abs/2604.09676>`_, 2026; its numbers
of equations and theorems are used throughout. See `claims` for how to add one.
"""
