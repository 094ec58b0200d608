# SPDX-License-Identifier: Apache-2.0
"""Collection of an iteration's training data: prompts to scored rollouts.

`collector` draws prompts, samples and scores responses (`draws`) and chooses the
groups to train on (`group_filter`). `dynamic_sampling` adds prompts until enough
groups pass, `partial_rollouts` carries unfinished responses over an update.
"""
