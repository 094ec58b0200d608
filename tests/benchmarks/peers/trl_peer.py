# SPDX-License-Identifier: Apache-2.0
"""TRL's GRPO trainer with a Qwen2 of transformers, in its own loop.

Libraries are imported by name, as they are not installed where types are checked.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
from typing import Any

from . import worker

datasets: Any = importlib.import_module('datasets')
tokenizers: Any = importlib.import_module('tokenizers')
torch: Any = importlib.import_module('torch')
transformers: Any = importlib.import_module('transformers')
trl: Any = importlib.import_module('trl')

# Sets of random prompts to train on, each for one iteration.
PROMPT_SETS = 64
# A token whose id is beyond the policy's vocabulary, so that it is never sampled.
UNUSED = '<unused>'


def tokenizer(shape: worker.Shape) -> Any:
  """A tokenizer whose tokens are single characters."""
  vocabulary = {worker.decode([i]): i for i in range(shape.vocabulary)}
  vocabulary[UNUSED] = shape.vocabulary
  tokenizer = tokenizers.Tokenizer(
    tokenizers.models.WordLevel(vocabulary, unk_token=UNUSED)
  )
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
    tokenizers.Regex('.'), 'isolated'
  )
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    eos_token=UNUSED,
    pad_token=worker.decode([worker.PAD_ID]),
    unk_token=UNUSED,
    padding_side='left',
  )


def policy(shape: worker.Shape) -> Any:
  """A Qwen2 of the shape's sizes, with random matrices."""
  torch.manual_seed(0)
  heads, kv_heads, _ = shape.head_sizes
  model = transformers.Qwen2ForCausalLM(
    transformers.Qwen2Config(
      vocab_size=shape.vocabulary,
      hidden_size=shape.width,
      intermediate_size=shape.feed_forward_width,
      num_hidden_layers=shape.layers,
      num_attention_heads=heads,
      num_key_value_heads=kv_heads,
      tie_word_embeddings=False,
      initializer_range=worker.SCALE,
      bos_token_id=None,
      eos_token_id=list(shape.end_ids) or None,
      pad_token_id=worker.PAD_ID,
      dtype='float32',
    )
  )
  return model.float()


def rewards(completions: list[str], **_: Any) -> list[float]:
  """Rewards of responses."""
  return [worker.reward(text) for text in completions]


def settings(shape: worker.Shape, directory: str) -> Any:
  """Settings of the trainer: float32, one update per rollout, no files."""
  return trl.GRPOConfig(
    output_dir=directory,
    use_cpu=True,
    bf16=False,
    per_device_train_batch_size=shape.sequences,
    num_generations=shape.group,
    max_completion_length=shape.response,
    gradient_checkpointing=False,
    temperature=1.0,
    beta=0.0,
    epsilon=worker.CLIP,
    learning_rate=worker.LEARNING_RATE,
    lr_scheduler_type='constant',
    max_grad_norm=worker.MAX_GRADIENT_NORM,
    max_steps=1_000_000,
    logging_steps=1_000_000,
    save_strategy='no',
    report_to='none',
    disable_tqdm=True,
  )


class Peer:
  """A trainer that waits for the driver's command before each step."""

  def __init__(
    self, shape: worker.Shape, commands: worker.Commands, directory: str
  ) -> None:
    """Builds the trainer."""
    self._shape, self._commands = shape, iter(commands)
    self._answer = commands.answer
    prompts = [
      p for i in range(PROMPT_SETS) for p in worker.prompts_of(shape, i)
    ]
    self._trainer = trl.GRPOTrainer(
      model=policy(shape),
      reward_funcs=rewards,
      args=settings(shape, directory),
      train_dataset=datasets.Dataset.from_dict({'prompt': prompts}),
      processing_class=tokenizer(shape),
    )
    peer = self

    class Callback(transformers.TrainerCallback):
      """Calls the peer around each step."""

      def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any):
        """Waits for a command."""
        peer._begin(control)

      def on_step_end(self, args: Any, state: Any, control: Any, **_: Any):
        """Answers the command."""
        peer._end()

    self._trainer.add_callback(Callback())
    self._generate = self._trainer._generate
    self._trainer._generate = self._timed_generate
    self._stopwatch = worker.Stopwatch()
    self._tokens = self._prompt_set = 0

  def run(self) -> None:
    """Trains until the driver closes the pipe."""
    self._trainer.train()

  def _begin(self, control: Any) -> None:
    """Runs the rollouts that are requested, until a step is."""
    for command in self._commands:
      self._stopwatch = worker.Stopwatch()
      if command == 'step':
        return
      prompts = worker.prompts_of(self._shape, self._prompt_set)
      self._prompt_set += 1
      self._trainer._generate(
        [p for p in prompts for _ in range(self._shape.group)]
      )
      self._end()
    raise SystemExit

  def _end(self) -> None:
    """Sends the measurements of a command."""
    self._stopwatch.lap('update')
    self._answer(self._stopwatch.total() | {'tokens': self._tokens})

  def _timed_generate(self, prompts: list[str]) -> Any:
    output = self._generate(prompts)
    self._tokens = sum(map(len, output[1]))
    self._stopwatch.lap('rollout')
    return output


def main() -> None:
  """Runs the stages that the driver requests, until it closes the pipe."""
  commands = worker.Commands()
  with tempfile.TemporaryDirectory() as directory:
    peer = Peer(worker.read_shape(), commands, directory)
    commands.ready(
      **{n: importlib.metadata.version(n) for n in ('trl', 'torch')}
    )
    peer.run()


if __name__ == '__main__':
  main()
