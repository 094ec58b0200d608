# SPDX-License-Identifier: Apache-2.0
"""Maximal lengths of prompts and responses within a model's positions."""

from __future__ import annotations

from covrl.pretrained import max_positions


def model_lengths(
  directory: str,
  lengths: tuple[int | None, int | None],
  defaults: tuple[int, int],
) -> tuple[int, int]:
  """Returns the maximal lengths of prompts and of responses, in tokens.

  Args:
    directory: the pretrained model; empty without any, which sets no limit.
    lengths: the requested lengths; `None` for a default.
    defaults: lengths in place of `None`, reduced if the model has fewer
      positions.

  Raises:
    ValueError: a given length is below 1 or exceeds the model's positions.
  """
  options = dict(
    zip(('--max_prompt_length', '--max_length'), lengths, strict=True)
  )
  requested = {name: n for name, n in options.items() if n is not None}
  for name, number in requested.items():
    if number < 1:
      raise ValueError(f'{name} must be at least 1, got {number}')
  positions = max_positions(directory) if directory else None
  prompt, response = lengths
  if positions is None:
    return prompt or defaults[0], response or defaults[1]
  if prompt is None:
    available = positions // 2 if response is None else positions - response
    prompt = max(1, min(defaults[0], available))
  if response is None:
    response = max(1, min(defaults[1], positions - prompt))
  if prompt + response > positions:
    limit = (
      f'at most {positions}' if len(requested) > 1 else f'below {positions}'
    )
    raise ValueError(
      f'{" + ".join(requested)} must be {limit}, the positions of {directory}'
      f' (max_position_embeddings), got {" + ".join(map(str, requested.values()))}'
    )
  return prompt, response
