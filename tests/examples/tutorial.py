# ---
# jupyter:
#   jupytext:
#     text_representation:
#       format_name: percent
# ---

# %% [markdown]
# # From a prompt to an entropy curve
#
# A tiny policy learns Countdown: combine the given numbers into the target. We
# look at a prompt, train the policy with plain GRPO and with an entropy bonus,
# and draw both entropies. It takes about a minute on two CPU cores. Open this file as a
# notebook with jupytext, or run it: `python tests/examples/tutorial.py`.

# %%
import dataclasses
import json
import pathlib
import tempfile

import covrl
from covrl.config import Recipe, load
from covrl.models import tiny
from covrl.rewards import score_countdown
from covrl.train import train

# %% [markdown]
# ## The recipes
#
# A recipe holds a configuration and the functions that build everything else.
# `small` shrinks model, problems and batches of a shipped recipe; another token
# chain is one argument.


# %%
def small(recipe: Recipe) -> Recipe:
  """Returns a Countdown recipe that is small enough for a minute."""
  config = recipe.config
  config.countdown.min_numbers, config.countdown.max_numbers = 2, 3
  config.countdown.max_value, config.countdown.max_target = 6, 20
  config.countdown.held_out = config.evaluate.problems = 32
  config.warm_start.steps = 150
  config.warm_start.learning_rate = 1e-2
  config.rollout.prompts_per_iteration = 32
  config.rollout.responses_per_prompt = 4
  config.train.iterations = 15
  config.train.sequences_per_update = 64
  config.train.learning_rate = 1e-3
  config.evaluate.every = 15
  config.logging.tensorboard = False
  config.logging.entropy_change_every = 0
  return dataclasses.replace(
    recipe, model=lambda config, vocab_size: tiny(vocab_size)
  )


grpo = small(load('countdown:grpo'))
recipes = {
  'GRPO': grpo,
  'GRPO with an entropy bonus': dataclasses.replace(
    grpo, token_tx=lambda config: covrl.entropy_bonus(0.05)
  ),
}

# %% [markdown]
# ## A prompt and its reward
#
# The task gives prompts, references, and a score for every response.

# %%
problem = grpo.task(grpo.config).train[0]
print(problem.prompt, problem.reference)
print(score_countdown('1 + 1', problem.reference))

# %% [markdown]
# ## Training
#
# A run is a directory; the entropy of every update is in `metrics.jsonl`.

# %%
curves: dict[str, list[float]] = {}
for name, recipe in recipes.items():
  directory = pathlib.Path(tempfile.mkdtemp())
  train(recipe, str(directory))
  lines = (directory / 'metrics.jsonl').read_text().splitlines()
  metrics = [json.loads(line) for line in lines]
  curves[name] = [m['entropy'] for m in metrics if m['phase'] == 'train']

# %% [markdown]
# ## The entropy of every update, in nats

# %%
for name, entropies in curves.items():
  print(name)
  for update, entropy in enumerate(entropies):
    print(f'{update:4} {entropy:.3f} {"█" * round(entropy * 40)}')
