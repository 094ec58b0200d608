# SPDX-License-Identifier: Apache-2.0
"""Problem sources, tokenizers, prompt formats and the Grain pipeline."""

from covrl.data.chat import ChatTemplate as ChatTemplate
from covrl.data.columns import Row as Row
from covrl.data.decontamination import NgramIndex as NgramIndex
from covrl.data.filters import FilteredSource as FilteredSource
from covrl.data.filters import NoneAnswers as NoneAnswers
from covrl.data.filters import ProblemFilter as ProblemFilter
from covrl.data.filters import filter_sources as filter_sources
from covrl.data.generated.arithmetic import ArithmeticSource as ArithmeticSource
from covrl.data.generated.arithmetic import (
  SolvedArithmeticSource as SolvedArithmeticSource,
)
from covrl.data.generated.arithmetic import (
  held_out_arithmetic as held_out_arithmetic,
)
from covrl.data.generated.countdown import CountdownConfig as CountdownConfig
from covrl.data.generated.countdown import CountdownSource as CountdownSource
from covrl.data.generated.countdown import (
  SolvedCountdownSource as SolvedCountdownSource,
)
from covrl.data.generated.countdown import (
  countdown_tokenizer as countdown_tokenizer,
)
from covrl.data.generated.countdown import (
  held_out_countdown as held_out_countdown,
)
from covrl.data.generated.countdown_steps import (
  CountdownStepsSource as CountdownStepsSource,
)
from covrl.data.generated.countdown_steps import (
  SolvedCountdownStepsSource as SolvedCountdownStepsSource,
)
from covrl.data.generated.countdown_steps import (
  held_out_steps as held_out_steps,
)
from covrl.data.generated.countdown_steps import (
  steps_tokenizer as steps_tokenizer,
)
from covrl.data.generated.mazes import ExploredMazeSource as ExploredMazeSource
from covrl.data.generated.mazes import MazeSource as MazeSource
from covrl.data.generated.mazes import held_out_mazes as held_out_mazes
from covrl.data.generated.mazes import maze_tokenizer as maze_tokenizer
from covrl.data.generated.mazes import solve_maze as solve_maze
from covrl.data.packing import TokenRows as TokenRows
from covrl.data.packing import pack_if_fit as pack_if_fit
from covrl.data.packing import pack_rows as pack_rows
from covrl.data.packing import prompt_ids as prompt_ids
from covrl.data.packing import prompt_rows as prompt_rows
from covrl.data.packing import token_rows as token_rows
from covrl.data.pipeline import PromptBatch as PromptBatch
from covrl.data.pipeline import PromptStream as PromptStream
from covrl.data.pipeline import StreamState as StreamState
from covrl.data.pipeline import SupervisedStream as SupervisedStream
from covrl.data.problems import Problem as Problem
from covrl.data.problems import ProblemSource as ProblemSource
from covrl.data.problems import question_key as question_key
from covrl.data.prompt_faults import PromptFaults as PromptFaults
from covrl.data.prompts import FormattedSource as FormattedSource
from covrl.data.prompts import PromptFormat as PromptFormat
from covrl.data.readers import ArrayRecordRecords as ArrayRecordRecords
from covrl.data.readers import JsonlRecords as JsonlRecords
from covrl.data.readers import ParquetRecords as ParquetRecords
from covrl.data.readers import Records as Records
from covrl.data.readers import TfdsRecords as TfdsRecords
from covrl.data.readers import open_records as open_records
from covrl.data.schemas import SCHEMAS as SCHEMAS
from covrl.data.schemas import Schema as Schema
from covrl.data.schemas import custom_schema as custom_schema
from covrl.data.sources import ConcatenatedSource as ConcatenatedSource
from covrl.data.sources import FileSource as FileSource
from covrl.data.sources import ListSource as ListSource
from covrl.data.sources import MixtureSource as MixtureSource
from covrl.data.sources import SubsetSource as SubsetSource
from covrl.data.suites import SUITES as SUITES
from covrl.data.suites import Suite as Suite
from covrl.data.suites import check_suite_names as check_suite_names
from covrl.data.suites import load_suites as load_suites
from covrl.data.tokenizers.json_tokenizer import JsonTokenizer as JsonTokenizer
from covrl.data.tokenizers.sentencepiece_tokenizer import (
  AddedToken as AddedToken,
)
from covrl.data.tokenizers.sentencepiece_tokenizer import (
  SentencePieceTokenizer as SentencePieceTokenizer,
)
from covrl.data.tokenizers.sentencepiece_tokenizer import (
  train_sentencepiece as train_sentencepiece,
)
from covrl.data.tokenizers.tokenizer import Tokenizer as Tokenizer
from covrl.data.tokenizers.tokenizer import check_tokenizer as check_tokenizer
