# SPDX-License-Identifier: Apache-2.0
"""Makes tokenizers/: small tokenizers with chat templates and expected outputs.

  python tests/golden/make_tokenizers.py

needs transformers besides the dependencies of the tests. `bytes` is a byte-level
tokenizer.json like those of Qwen and Llama 3; `pieces` is a sentencepiece model
with byte fallback like that of Llama 2. `golden.json` holds texts, their ids,
and a formatted conversation.
"""

import importlib
import io
import json
import pathlib

sentencepiece = importlib.import_module('sentencepiece')
tokenizers = importlib.import_module('tokenizers')
transformers = importlib.import_module('transformers')

OUTPUT = pathlib.Path(__file__).with_name('tokenizers')
CORPUS = [
  'What is the sum of 12 and 30? The sum is 42.',
  'Let x be a number; then 2 x + 1 is odd. The answer is in the box.',
] * 8
TEXTS = [
  'The sum of 12 and 30 is 42.',
  '  two spaces, a\ttab\nand a new line ',
  'Grüße, 漢字, 🙂 and e\u0301.',
  'x<|im_end|>y',
  '',
]
CHAT = [
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'What is 12 + 30?'},
]
TEMPLATE = """\
{%- for message in messages %}
  {%- if message.role not in ['system', 'user', 'assistant'] %}
    {{- raise_exception('no such role: ' + message.role) }}
  {%- endif %}
  {{- '<|im_start|>' + message.role + '\\n' + message.content }}
  {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
  {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def make_bytes():
  """Writes the byte-level tokenizer."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(
    add_prefix_space=False
  )
  tokenizer.decoder = tokenizers.decoders.ByteLevel()
  tokenizer.train_from_iterator(
    CORPUS,
    tokenizers.trainers.BpeTrainer(
      vocab_size=300,
      initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
      show_progress=False,
    ),
  )
  tokenizer.add_special_tokens(['<|endoftext|>', '<|im_start|>', '<|im_end|>'])
  fast = transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizer,
    eos_token='<|im_end|>',
    pad_token='<|endoftext|>',
    chat_template=TEMPLATE,
  )
  fast.save_pretrained(OUTPUT / 'bytes')
  end_ids = fast.convert_tokens_to_ids(['<|im_end|>', '<|endoftext|>'])
  # Larger than the tokenizer, like padded embeddings.
  write('bytes', 'config.json', {'vocab_size': 320})
  write('bytes', 'generation_config.json', {'eos_token_id': end_ids})
  write(
    'bytes',
    'golden.json',
    {
      'texts': TEXTS,
      'ids': [fast.encode(text, add_special_tokens=False) for text in TEXTS],
      'chat': CHAT,
      'chat_text': fast.apply_chat_template(
        CHAT, tokenize=False, add_generation_prompt=True
      ),
    },
  )


def make_pieces():
  """Writes the sentencepiece tokenizer."""
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(CORPUS),
    model_writer=model,
    model_type='bpe',
    vocab_size=330,
    byte_fallback=True,
    normalization_rule_name='identity',
    remove_extra_whitespaces=False,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  (OUTPUT / 'pieces').mkdir(parents=True, exist_ok=True)
  (OUTPUT / 'pieces' / 'tokenizer.model').write_bytes(model.getvalue())
  processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
  size = processor.vocab_size()
  write('pieces', 'config.json', {'vocab_size': size, 'eos_token_id': [2, 5]})
  ids = [processor.encode(text) for text in TEXTS]
  write('pieces', 'golden.json', {'texts': TEXTS, 'ids': ids})


def write(directory, name, content):
  """Writes a JSON file."""
  text = json.dumps(content, ensure_ascii=False, indent=1)
  (OUTPUT / directory / name).write_text(text + '\n')


if __name__ == '__main__':
  make_bytes()
  make_pieces()
