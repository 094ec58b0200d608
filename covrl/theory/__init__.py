# SPDX-License-Identifier: Apache-2.0
"""Numerical checks of every claim in a paper on entropy control.

The paper is `A Comparative Theoretical Analysis of Entropy Control Methods in
Reinforcement Learning <https://arxiv.org/abs/2604.09676>`_, 2026. Names of
claims are its numbers of equations and theorems, and the modules
`sections/section_…` follow its sections. `claim` explains
how to add a claim, `runner` runs them. The claims use tabular softmax policies
(`categorical`, `trees`, `tabular`) and three larger experiments
(`method_study`, `score_study`, `controller_study`).
"""
