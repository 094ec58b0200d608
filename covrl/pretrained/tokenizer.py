# SPDX-License-Identifier: Apache-2.0
"""Loads the tokenizer and the chat template of a pretrained model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from etils import epath

from covrl.data import (
  ChatTemplate,
  JsonTokenizer,
  SentencePieceTokenizer,
  Tokenizer,
)
from covrl.data.columns import type_name
from covrl.pretrained.adapters import base_model_directory, is_adapter
from covrl.pretrained.json_files import (
  MAX_JSON_BYTES,
  MAX_TOKENIZER_BYTES,
  read_bytes,
)
from covrl.pretrained.resolve import resolve
from covrl.pretrained.tokenizer_files import (
  check_added_tokens,
  end_tokens_of,
  has_chat_template,
  read_fields,
  sentencepiece_added_tokens,
  special_tokens_of,
  tokenizer_directory,
  unnamed_special_tokens,
  vocab_size_of,
)

# A conversation by which the token is found that a chat template writes after a turn
# of the model.
_SAMPLE_ANSWER = 'The sum is 42.'
_SAMPLE_TURNS = (
  {'role': 'user', 'content': 'What is 12 + 30?'},
  {'role': 'assistant', 'content': _SAMPLE_ANSWER},
)


# Classes of tokenizers whose post-processor transformers 4 replaces by one that
# follows `add_bos_token`, true by default. transformers 5 keeps the file's.
_REPLACED_POST_PROCESSORS = (
  'LlamaTokenizer',
  'CodeLlamaTokenizer',
  'GemmaTokenizer',
  'CohereTokenizer',
)


def load_tokenizer(directory: epath.PathLike) -> Tokenizer:
  """Loads the tokenizer of a model or of adapters.

  The tokenizer of adapters is the one beside them, else that of their base model.

  `tokenizer.json` takes precedence over a sentencepiece `tokenizer.model`. Its
  post-processor alone determines whether prompts begin with a BOS token, as in
  the tokenizer's own encoding and in transformers 5 (see `bos_notes`); with `tokenizer.model`, `add_bos_token` of
  `tokenizer_config.json` does, true unless given.

  The end tokens are those in `generation_config.json`, else in `config.json`,
  else the `eos_token` of `tokenizer_config.json`. Those of adapters are the ones in
  a `generation_config.json` beside them, else the `eos_token` of a tokenizer beside
  them, and those of the base model. The first of several is the one that the chat
  template writes after the model's turn, else `eos_token`: supervised training ends
  responses with it.

  Args:
    directory: see `load_pretrained`.

  Returns:
    A tokenizer with the model's vocabulary size.

  Raises:
    ValueError: the tokenizer is missing or has another vocabulary size, a tokenizer
      beside adapters has tokens that the base model lacks, no file states the end
      tokens, or a file is malformed.
  """
  directory = resolve(directory)
  tokenizer = _open_tokenizer(directory)
  if len(tokenizer.end_ids) > 1:
    for text in _turn_ends(directory):
      ids = [
        i for i in _turn_end_ids(text, tokenizer) if i in tokenizer.end_ids
      ]
      if ids:
        return tokenizer.with_first_end(ids[0])
  return tokenizer


def unused_turn_end(
  directory: epath.PathLike, tokenizer: Tokenizer
) -> str | None:
  """Returns the end of a turn in the chat template that ends no response.

  Base models often have a chat template whose token after an answer is not among
  their end tokens. A response that is sampled from it goes on after that token.

  Args:
    directory: see `load_pretrained`.
    tokenizer: the model's tokenizer.

  Returns:
    The text after an answer; `None` if it has an end token or no control token, or
    there is no such text.
  """
  text = next(_template_turn_ends(resolve(directory)), '')
  ids = _turn_end_ids(text, tokenizer)
  has_control = any(not tokenizer.decode([token]) for token in ids)
  if not has_control or not set(ids).isdisjoint(tokenizer.end_ids):
    return None
  return text.strip()


def bos_notes(
  directory: epath.PathLike, tokenizer: Tokenizer, prompt: str
) -> list[str]:
  """Returns a note if versions of transformers disagree on a prompt's BOS token.

  Args:
    directory: see `load_pretrained`.
    tokenizer: the model's tokenizer.
    prompt: a formatted prompt; one that writes the token is the same in all.
  """
  folder = tokenizer_directory(directory)
  bos = special_tokens_of(folder).get('bos_token')
  if bos is None or not (folder / 'tokenizer.json').is_file():
    return []
  fields = read_fields(folder, 'tokenizer_config.json')
  name = str(fields.get('tokenizer_class')).removesuffix('Fast')
  adds_bos = fields.get('add_bos_token') is not False
  has_bos = tokenizer.bos_id is not None
  if (
    name not in _REPLACED_POST_PROCESSORS
    or adds_bos == has_bos
    or prompt.lstrip().startswith(bos)
  ):
    return []
  actual, other = ('with', 'without') if has_bos else ('without', 'with')
  return [
    f'prompts begin {actual} {bos}, as tokenizer.json states and in transformers 5;'
    f' in transformers 4 they begin {other} it, as {name} and add_bos_token state'
  ]


def load_chat_template(directory: epath.PathLike) -> ChatTemplate:
  """Loads the chat template of a model or of adapters.

  The chat template of adapters is the one beside them, else that of their base
  model. Special tokens in it are those of the tokenizer, see `load_tokenizer`.

  Args:
    directory: see `load_pretrained`.

  Raises:
    ValueError: the model has no chat template, or a file is malformed.
  """
  special_tokens = special_tokens_of(tokenizer_directory(directory))
  directory = resolve(directory)
  if is_adapter(directory) and not has_chat_template(directory):
    directory = base_model_directory(directory)
  file = directory / 'chat_template.jinja'
  if file.is_file():
    try:
      source = read_bytes(file, MAX_JSON_BYTES).decode()
    except UnicodeDecodeError as error:
      raise ValueError(f'{file} must be UTF-8, got {error.reason}') from None
  else:
    file = directory / 'tokenizer_config.json'
    source = _template_of_config(directory)
  return ChatTemplate(source, special_tokens, file=str(file))


def _open_tokenizer(
  directory: epath.Path,
) -> JsonTokenizer | SentencePieceTokenizer:
  """The tokenizer with the end tokens in the order of the files."""
  end_tokens = end_tokens_of(directory)
  base = base_model_directory(directory)
  vocab_size = vocab_size_of(base)
  directory = tokenizer_directory(directory)
  if directory != base and vocab_size is not None:
    check_added_tokens(directory, base, vocab_size)
  special_tokens = special_tokens_of(directory)
  file = directory / 'tokenizer.json'
  if file.is_file():
    try:
      return JsonTokenizer(
        read_bytes(file, MAX_TOKENIZER_BYTES),
        end_tokens=end_tokens,
        pad_token=special_tokens.get('pad_token'),
        vocab_size=vocab_size,
        special_tokens=(
          *special_tokens.values(),
          *unnamed_special_tokens(directory),
        ),
      )
    except ValueError as error:
      raise ValueError(f'{file}: {error}') from None
  file = directory / 'tokenizer.model'
  if not file.is_file():
    raise ValueError(
      f'{directory} must hold tokenizer.json or tokenizer.model, got neither'
    )
  config = read_fields(directory, 'tokenizer_config.json')
  adds_bos = config.get('add_bos_token')
  if adds_bos is not None and not isinstance(adds_bos, bool):
    raise ValueError(
      f'{directory / "tokenizer_config.json"}: add_bos_token must be true or'
      f' false, got {str(adds_bos)[:40]}'
    )
  try:
    return SentencePieceTokenizer(
      read_bytes(file, MAX_TOKENIZER_BYTES),
      end_tokens,
      adds_bos=adds_bos is not False,
      added_tokens=sentencepiece_added_tokens(directory),
      special_tokens=(
        *special_tokens.values(),
        *unnamed_special_tokens(directory),
      ),
      vocab_size=vocab_size,
      spaces_parts=config.get('legacy') is not False,
    )
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from None


def _turn_end_ids(text: str, tokenizer: Tokenizer) -> list[int]:
  """Tokens of the end of a turn; none if it has text outside the vocabulary.

  The line break after it need not have a token.
  """
  for part in (text, text.strip()):
    try:
      return tokenizer.encode(part)
    except ValueError:
      continue
  return []


def _turn_ends(directory: epath.Path) -> Iterator[str]:
  """Texts that contain the end of a turn, in order of precedence."""
  yield from _template_turn_ends(directory)
  special_tokens = special_tokens_of(tokenizer_directory(directory))
  yield special_tokens.get('eos_token', '')


def _template_turn_ends(directory: epath.Path) -> Iterator[str]:
  """The text that the chat template writes after an answer, if there is any."""
  try:
    template = load_chat_template(directory)
    text = template.render(_SAMPLE_TURNS, add_generation_prompt=False)
    yield text.rpartition(_SAMPLE_ANSWER)[2]
  except ValueError:
    # Not every model has a chat template, and not every template takes this
    # conversation.
    pass


def _template_of_config(directory: epath.Path) -> str:
  """The chat template in `tokenizer_config.json`."""
  file = directory / 'tokenizer_config.json'
  source = read_fields(directory, file.name).get('chat_template')
  if isinstance(source, list):
    # Several named templates; `default` is the one without tools.
    if not all(
      isinstance(entry, Mapping) and {'name', 'template'} <= entry.keys()
      for entry in source
    ):
      raise ValueError(
        f'{file}: chat_template must list templates with name and template, got'
        f' {str(source)[:80]}'
      )
    templates = {str(entry['name']): entry['template'] for entry in source}
    source = templates.get('default')
  if source is None:
    raise ValueError(
      f'{file} must have a chat_template for conversations, got none'
    )
  if not isinstance(source, str):
    raise ValueError(
      f'{file}: chat_template must be text, got {type_name(source)}'
    )
  return source
