# SPDX-License-Identifier: Apache-2.0
"""A task whose problems are read from files, configured by `data` and `evaluate`."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from covrl.config import Config, ConfigError, DataConfig
from covrl.data import (
  ConcatenatedSource,
  FileSource,
  FormattedSource,
  ListSource,
  MixtureSource,
  NgramIndex,
  NoneAnswers,
  ProblemFilter,
  ProblemSource,
  PromptFaults,
  PromptFormat,
  Suite,
  Tokenizer,
  filter_sources,
  load_suites,
)
from covrl.data.chat import ChatTemplate
from covrl.data.packing import prompt_ids
from covrl.pretrained import load_chat_template, load_tokenizer
from covrl.pretrained.tokenizer import bos_notes, unused_turn_end
from covrl.tasks.graders import (
  answer_extractor,
  make_rewards,
  make_shaping_rewards,
  reference_response,
)
from covrl.tasks.pass_rates import read_pass_rates
from covrl.tasks.task import Task
from covrl.tasks.training_files import weighted_files


def text_task(config: Config) -> Task:
  """Returns a task of problems from files, with a pretrained model's tokenizer.

  Files are recognised by their columns (`covrl.data.SCHEMAS`), which determine
  whether a problem is of mathematics or programming, and so its reward.
  Problems that are too long, too easy, too hard, duplicates or part of an
  evaluation suite are dropped and counted in the task's notes.

  Args:
    config: `data` and `evaluate` name the files; `pretrained` names the model
      with tokenizer and chat template. Without `data.train` the task has no
      training problems, which suffices for an evaluation.

  Raises:
    ValueError: a file or a row is invalid, or too many problems were dropped;
      the message names file, row and column.
  """
  if not config.pretrained:
    raise ConfigError(
      'pretrained must name a model for a task of text, which uses its'
      " tokenizer, got ''"
    )
  tokenizer = load_tokenizer(config.pretrained)
  format_prompt = prompt_format(config)
  suites = load_suites(config.evaluate.suites, config.evaluate.suite_directory)
  prompted_suites = [
    dataclasses.replace(
      suite, problems=list(map(format_prompt, suite.problems))
    )
    for suite in suites
  ]
  train, kinds, notes = _training_problems(
    config, format_prompt, tokenizer, suites
  )
  for suite, bare_suite in zip(prompted_suites, suites, strict=True):
    _merge_kinds(kinds, {p.source: p.kind for p in suite.problems}, suite.name)
    num_repeated = len(suite.problems) - len({p.key for p in suite.problems})
    repeated_text = (
      f', {num_repeated:,} of which repeat a question of the set'
      if num_repeated
      else ''
    )
    notes.append(
      f'{suite.name}: {len(suite.problems):,} problems (schema {suite.schema})'
      f'{repeated_text}'
    )
    none_answers = NoneAnswers()
    faults = PromptFaults(format_prompt, tokenizer)
    for problem, prompted in zip(
      bare_suite.problems, suite.problems, strict=True
    ):
      none_answers.add(problem)
      faults.add(problem, prompted.prompt)
    warnings = [
      *suite.warnings,
      *none_answers.warnings(),
      *faults.warnings(),
    ]
    notes += [f'warning: {text}' for text in warnings]
  rewards, sandbox_notes = make_rewards(kinds, config.rewards)
  if format_prompt.template is not None:
    notes += chat_notes(config.pretrained, tokenizer)
  for source in (train, *(suite.problems for suite in prompted_suites)):
    if len(source):
      notes += bos_notes(config.pretrained, tokenizer, source[0].prompt)
      break
  return Task(
    tokenizer=tokenizer,
    train=train,
    solved=None,
    held_out=(),
    rewards=[*rewards, *make_shaping_rewards(config)],
    suites=prompted_suites,
    answer_extractor=answer_extractor,
    reference_response=reference_response,
    checked_sources=[
      train,
      *(ListSource(suite.problems) for suite in prompted_suites),
    ],
    notes=[*notes, *sandbox_notes],
    prompt_format=format_prompt,
  )


def chat_notes(directory: str, tokenizer: Tokenizer) -> list[str]:
  """Returns a note if responses do not end where the chat template ends answers.

  Args:
    directory: the pretrained model.
    tokenizer: the policy's tokenizer.
  """
  turn_end = unused_turn_end(directory, tokenizer)
  if turn_end is None:
    return []
  return [
    f'responses do not end with {turn_end}, which the chat template writes after'
    ' an answer; eos_token_id in generation_config.json can name it'
  ]


def prompt_format(config: Config) -> PromptFormat:
  """Returns the format of prompts: `data.template` or the model's chat template.

  Raises:
    ConfigError: variables of the chat template are not a JSON object, or have no
      effect.
    ValueError: the model or its chat template cannot be read.
  """
  data = config.data
  instructions = {
    'math': data.math_instruction,
    'code': data.code_instruction,
  }
  if data.template:
    if data.template_variables:
      raise ConfigError(
        'data.template_variables must be absent with data.template, which replaces'
        f' the chat template, got {data.template_variables!r} and'
        f' {data.template!r}'
      )
    return PromptFormat(
      plain_template=data.template,
      system=data.system,
      instructions=instructions,
      question_only=data.bare_questions,
    )
  template = load_chat_template(config.pretrained)
  variables = parse_template_variables(data.template_variables, template)
  _check_template(template, variables, data.system)
  return PromptFormat(
    template=template,
    variables=variables,
    system=data.system,
    instructions=instructions,
    question_only=data.bare_questions,
  )


def _check_template(
  template: ChatTemplate, variables: Mapping[str, Any], system: str
) -> None:
  """Checks that a chat template writes questions and the system message.

  Raises:
    ConfigError: it leaves one of them out.
    ValueError: it rejects such a conversation.
  """
  contents = {'data.system': 'Answer briefly.', 'a question': 'What is 1 + 1?'}
  if not system:
    del contents['data.system']
  roles = {'data.system': 'system', 'a question': 'user'}
  prompt = template.render(
    [
      {'role': roles[subject], 'content': content}
      for subject, content in contents.items()
    ],
    **variables,
  )
  for subject, content in contents.items():
    if content not in prompt:
      raise ConfigError(
        f'{subject} must be written by the chat template, got'
        f' {template.file or "one"}, which leaves it out'
      )


def parse_template_variables(
  text: str, template: ChatTemplate
) -> dict[str, Any]:
  """Parses variables of the chat template, see `DataConfig`.

  Args:
    text: a JSON object; empty for none.
    template: the template, which must have variables of these names.

  Raises:
    ConfigError: the text is not a JSON object, has the name of a variable that
      prompts need, or one that the template does not read.

  >>> template = ChatTemplate('{{ messages }}{{ enable_thinking }}')
  >>> parse_template_variables('{"enable_thinking": false}', template)
  {'enable_thinking': False}
  """
  try:
    variables = json.loads(text) if text else {}
  except (ValueError, RecursionError):
    variables = None
  if not isinstance(variables, dict):
    raise ConfigError(
      'data.template_variables must be a JSON object such as'
      f' {{"enable_thinking": false}}, got {text!r}'
    )
  reserved_names = {'messages', 'add_generation_prompt', 'strftime_now', 'now'}
  if reserved := sorted(reserved_names & variables.keys()):
    raise ConfigError(
      f'data.template_variables must not have {", ".join(reserved)}, which'
      f' prompts need, got {text!r}'
    )
  for name in variables:
    if not re.search(rf'\b{re.escape(name)}\b', template.source):
      raise ConfigError(
        f'data.template_variables must be variables of the chat template, got'
        f' {name!r}, which {template.file or "it"} does not read'
      )
  return variables


def _training_problems(
  config: Config,
  prompt_format: PromptFormat,
  tokenizer: Tokenizer,
  suites: Sequence[Suite],
) -> tuple[ProblemSource, dict[str, str], list[str]]:
  """Returns the training problems, the kind of each source, and notes."""
  data = config.data
  if not data.train:
    return ListSource([]), {}, []
  files = weighted_files(data.train)
  sources = [FileSource(file, schema=data.schema or None) for file, _ in files]
  filtered_sources = filter_sources(
    sources, problem_filter(config, prompt_format, tokenizer, suites)
  )
  notes = [
    f'{source.file}: {filtered_source} (schema {source.schema.name})'
    for source, filtered_source in zip(sources, filtered_sources, strict=True)
  ]
  notes += [
    f'warning: {text}'
    for source, filtered_source in zip(sources, filtered_sources, strict=True)
    for text in (*source.warnings, *filtered_source.warnings())
  ]
  kinds: dict[str, str] = {}
  for source in sources:
    source_kinds = {
      name: prompt_format.formatted_kind(kind)
      for name, kind in source.kinds.items()
    }
    _merge_kinds(kinds, source_kinds, source.file)
  prompts = [
    FormattedSource(filtered_source.source, prompt_format)
    for filtered_source in filtered_sources
  ]
  weights = [weight for _, weight in files if weight is not None]
  if not weights:
    return ConcatenatedSource(prompts), kinds, notes
  return MixtureSource(prompts, weights), kinds, notes


def problem_filter(
  config: Config,
  prompt_format: PromptFormat,
  tokenizer: Tokenizer,
  suites: Sequence[Suite],
) -> ProblemFilter:
  """Returns the criteria that problems to train on must meet.

  Args:
    config: the configuration of training.
    prompt_format: the format of prompts.
    tokenizer: the policy's tokenizer.
    suites: evaluation suites, whose questions are not trained on.

  Raises:
    ValueError: the measured pass rates cannot be read.
  """
  data = config.data
  return ProblemFilter(
    format_prompt=prompt_format,
    prompt_texts=prompt_format.texts,
    prompt_length=lambda problem: len(prompt_ids(problem, tokenizer)),
    max_prompt_length=config.rollout.max_prompt_length,
    deduplicate=data.deduplicate,
    evaluation_ngrams=_evaluation_ngrams(data, suites),
    pass_rates=read_pass_rates(data.pass_rates),
    min_pass_rate=data.min_pass_rate,
    max_pass_rate=data.max_pass_rate,
    prompt_faults=lambda: PromptFaults(prompt_format, tokenizer),
  )


def _evaluation_ngrams(
  data: DataConfig, suites: Sequence[Suite]
) -> NgramIndex | None:
  """Returns the n-grams of the evaluation suites; `None` if they are not compared."""
  if not data.overlap_words:
    return None
  return NgramIndex(
    {suite.name: suite.problems for suite in suites},
    ngram_words=data.overlap_words,
  )


def _merge_kinds(
  kinds: dict[str, str], others: Mapping[str, str], file: str
) -> None:
  """Adds the kinds of a file's sources; each source has one kind only."""
  for source, kind in others.items():
    if kinds.setdefault(source, kind) != kind:
      raise ValueError(
        f'the source {source!r} must be of one kind of problems, got'
        f' {kinds[source]} before and {kind} in {file}'
      )
