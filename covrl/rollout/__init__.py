# SPDX-License-Identifier: Apache-2.0
"""Rollouts: the sampling engine, token sampling, and scoring of responses."""

from covrl.rollout.caching import Caching as Caching
from covrl.rollout.engine import SamplingEngine as SamplingEngine
from covrl.rollout.group_engine import GroupEngine as GroupEngine
from covrl.rollout.request_engine import RequestEngine as RequestEngine
from covrl.rollout.requests import NewTokens as NewTokens
from covrl.rollout.requests import Request as Request
from covrl.rollout.samples import Samples as Samples
from covrl.rollout.samples import to_rollout_rows as to_rollout_rows
from covrl.rollout.sampling import Sampling as Sampling
from covrl.rollout.sampling import sample_token as sample_token
