# SPDX-License-Identifier: Apache-2.0
"""Memory and time from shapes: every number is compared with one by hand."""

import dataclasses

import pytest
from train.process import RECIPES

from covrl.compile import model_cost
from covrl.compile.estimate import (
  IterationTime,
  iteration_time,
  network_models,
  state_memory,
)
from covrl.compile.plan import plan
from covrl.config import load
from covrl.models import Experts, Policy
from covrl.parallel import topologies
from covrl.train.networks import critic, critic_advantages
from covrl.train.setup.initial_policy import make_policy_of_size

RECIPE = RECIPES / 'toy_solved.py'


@pytest.fixture(scope='module')
def recipe():
  """The toy recipe with a reference policy."""
  return load(str(RECIPE), ['--config.train.keep_reference=True'])


@pytest.fixture(scope='module')
def policy(recipe):
  """The policy of the recipe."""
  task = recipe.task(recipe.config)
  return Policy(recipe.model(recipe.config, task.tokenizer.vocab_size))


def test_state_memory_equals_a_count_by_hand(recipe, policy):
  memory = state_memory(recipe, policy)
  weight_bytes = 4 * policy.num_params
  assert memory.params == memory.frozen == memory.gradients == weight_bytes
  # Adam's two moments, and counters.
  assert 2 * weight_bytes < memory.optimizer < 2 * weight_bytes + 64
  # 8 prompts of 6 and 32 responses of 4 − 1 tokens, keys and values in float32.
  bytes_per_token = token_bytes(policy)
  assert memory.cache == (8 * 6 + 32 * 3) * bytes_per_token
  assert memory.experts == 0


def token_bytes(policy):
  """Bytes of the keys and values of a token in float32."""
  model_config = policy.config
  return (
    model_config.num_layers
    * model_config.num_kv_heads
    * model_config.head_dim
    * 2
    * 4
  )


def prefill_seconds(policy):
  """Seconds of processing 8 prompts of 6 tokens on four chips of v5p."""
  return model_cost.prefill_flops(policy.config, 8, 6) / (4 * 459e12 * 0.4)


def test_decoding_of_many_responses_takes_its_flops(policy):
  many = load(
    str(RECIPE),
    [
      '--config.rollout.prompts_per_iteration=8192',
      '--config.train.sequences_per_update=32768',
      '--config.rollout.cache_dtype=int8',
    ],
  )
  slice_ = topologies.find_topology('v5p-8')
  chip = dataclasses.replace(slice_.chip, bandwidth=1e18)
  memory = state_memory(many, policy)
  seconds = iteration_time(
    many.config, policy, memory, slice_._replace(chip=chip), 1
  )
  prompts = model_cost.prefill_flops(policy.config, 8192, 6)
  step = model_cost.decode_flops(policy.config, 4 * 8192, 4)
  assert seconds.sampling == pytest.approx(
    (prompts + 4 * step) / (4 * 459e12 * 0.4)
  )


def test_fewer_slots_take_less_memory_and_read_the_weights_more_often(policy):
  in_slots = load(str(RECIPE), ['--config.rollout.slots=8'])
  slice_ = topologies.find_topology('v5p-8')
  memory = state_memory(in_slots, policy)
  assert memory.cache == (8 * 6 + 8 * 3) * token_bytes(policy)
  seconds = iteration_time(in_slots.config, policy, memory, slice_, 1)
  # Slots hold 32 / 8 responses of 4 tokens in turn.
  assert seconds.sampling == pytest.approx(
    prefill_seconds(policy)
    + 4 * 4 * (memory.params + memory.cache / 2) / (4 * 2765e9 * 0.6)
  )


def test_adapters_have_small_gradients_and_all_weights_are_read():
  with_adapters = load(str(RECIPE), ['--config.lora.rank=2'])
  task = with_adapters.task(with_adapters.config)
  policy = make_policy_of_size(with_adapters, task.tokenizer.vocab_size)
  memory = state_memory(with_adapters, policy)
  assert memory.gradients == memory.params < memory.frozen
  slice_ = topologies.find_topology('v5p-8')
  seconds = iteration_time(with_adapters.config, policy, memory, slice_, 1)
  weight_bytes = 4 * policy.num_params
  assert seconds.sampling == pytest.approx(
    prefill_seconds(policy)
    + 4 * (weight_bytes + memory.cache / 2) / (4 * 2765e9 * 0.6)
  )


def test_memory_of_recorded_experts_is_counted(recipe):
  experts = Experts(count=8, per_token=2)
  config = dataclasses.replace(
    recipe.config,
    train=dataclasses.replace(recipe.config.train, routing_replay=True),
  )
  with_replay = dataclasses.replace(
    recipe,
    config=config,
    model=lambda config, vocab_size: dataclasses.replace(
      recipe.model(config, vocab_size), experts=experts
    ),
  )
  # 32 rows of 8 + 4 tokens, two layers, two experts, a byte each.
  memory = state_memory(with_replay, make_policy_of_size(with_replay, 16))
  assert memory.experts == 32 * 12 * 2 * 2
  without_replay = dataclasses.replace(
    with_replay,
    config=dataclasses.replace(
      config, train=dataclasses.replace(config.train, routing_replay=False)
    ),
  )
  memory_without_replay = state_memory(
    without_replay, make_policy_of_size(without_replay, 16)
  )
  assert memory.training - memory_without_replay.training == memory.experts


def test_iteration_time_equals_a_count_by_hand(recipe, policy):
  memory = state_memory(recipe, policy)
  slice_ = topologies.find_topology('v5p-8')
  seconds = iteration_time(recipe.config, policy, memory, slice_, 2)
  flops, bandwidth = 8 * 459e12 * 0.4, 8 * 2765e9 * 0.6
  # Six FLOPs per parameter of a matrix and token, and attention.
  model, tokens = policy.config, 32 * 9
  embedding_size = model.vocab_size * model.model_dim
  matrices = (
    model_cost.layer_parameters(model) * model.num_layers + embedding_size
  )
  attention = 32 * model_cost.attention_flops(model, 9)
  assert seconds.training == pytest.approx(
    (6 * matrices * tokens + 3 * attention) / flops
  )
  # A forward pass of the policy and one of the reference.
  assert seconds.scoring == pytest.approx(
    (4 * matrices * tokens + 2 * attention) / flops
  )
  prefill = model_cost.prefill_flops(model, 8, 6) / flops
  assert seconds.sampling == pytest.approx(
    prefill + 4 * (memory.params + memory.cache / 2) / bandwidth
  )
  assert seconds.iteration == pytest.approx(
    sum(dataclasses.asdict(seconds).values())
  )
  assert isinstance(seconds, IterationTime)


def test_counts_memory_and_time_of_a_critic(recipe):
  without_critic = recipe
  recipe = dataclasses.replace(
    without_critic,
    networks=lambda config: {'critic': critic(config)},
    estimator=critic_advantages,
  )
  task = recipe.task(recipe.config)
  policy = Policy(recipe.model(recipe.config, task.tokenizer.vocab_size))
  memory, memory_without_critic = (
    state_memory(recipe, policy),
    state_memory(without_critic, policy),
  )
  (model_of_critic,) = network_models(recipe, policy)
  # A head of one column and a bias are added; tied embeddings have no matrix that
  # they replace.
  assert (
    model_of_critic.num_params
    == policy.num_params + policy.config.model_dim + 1
  )
  # Parameters and Adam's two moments.
  assert memory.networks == pytest.approx(
    12 * model_of_critic.num_params, abs=64
  )
  assert memory_without_critic.networks == 0
  assert memory.gradients == 4 * model_of_critic.num_params
  assert (
    memory.training - memory_without_critic.training
    == memory.networks + 4 * (model_of_critic.num_params - policy.num_params)
  )
  assert memory.sampling - memory_without_critic.sampling == memory.networks
  slice_ = topologies.find_topology('v5p-8')
  seconds, seconds_without_critic = (
    iteration_time(recipe.config, policy, memory, slice_, 1, networks)
    for networks in ([model_of_critic], [])
  )
  # Four more passes, one to score and three to update, with one output column in
  # place of the unembedding.
  sequences, model = (
    recipe.config.sequences_per_iteration,
    model_of_critic.config,
  )
  width = 9
  matrices = model_cost.layer_parameters(model) * model.num_layers
  products = 2 * sequences * width * (matrices + model.model_dim)
  attention = sequences * model_cost.attention_flops(model, width)
  pass_seconds = (products + attention) / (4 * 459e12 * 0.4)
  assert seconds.scoring - seconds_without_critic.scoring == pytest.approx(
    pass_seconds
  )
  assert seconds.training - seconds_without_critic.training == pytest.approx(
    3 * pass_seconds
  )
  output = '\n'.join(plan(recipe, slice_))
  assert (
    f'critic: {model_of_critic.num_params:,} parameters, trained beside'
    in output
  )
  assert '  networks ' in output
