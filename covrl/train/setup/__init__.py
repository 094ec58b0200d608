# SPDX-License-Identifier: Apache-2.0
"""Set-up of a run: its objects, its inputs, and what it resumes from.

`build` makes all objects of a run from its recipe. `inputs` and `code` fingerprint
data, models and packages, which are compared with a checkpoint's on resume.
`resume` saves and restores training progress, `restore` opens a finished run to
evaluate, sample or convert its policy.
"""
