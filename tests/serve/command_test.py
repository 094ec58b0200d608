# SPDX-License-Identifier: Apache-2.0
"""Commands `covrl sample --file` and `covrl serve`: refusals, a real server."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import jax
import pytest
from etils import epath
from serve.conftest import GOLDEN, POLICY

from covrl.cli import main, sample_file
from covrl.pretrained import save_pretrained
from covrl.rollout import Caching
from covrl.serve import load_model, policy
from covrl.serve.server import Address, open_socket, read_token


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A random model with a tokenizer and a chat template."""
  directory = tmp_path_factory.mktemp('pretrained') / 'model'
  save_pretrained(directory, POLICY, POLICY.init(jax.random.key(0)))
  for file in (GOLDEN / 'bytes').iterdir():
    if file.name not in ('config.json', 'golden.json'):
      (directory / file.name).write_bytes(file.read_bytes())
  return directory


def run_command(*arguments):
  """Runs a command with arguments of any type."""
  main([str(argument) for argument in arguments])


def error_of_command(capsys, *arguments):
  """Returns the error of a command that is refused."""
  with pytest.raises(SystemExit) as ended:
    run_command(*arguments)
  assert ended.value.code == 2
  return capsys.readouterr().err.splitlines()[-1].removeprefix('covrl: ')


def test_sample_writes_a_result_per_line_of_prompts(model, tmp_path, capsys):
  file, output = tmp_path / 'prompts.jsonl', tmp_path / 'responses.jsonl'
  file.write_text(
    '{"prompt": "ab"}\n{"prompt": "c", "n": 1}\n{"prompt": "\\ud800"}\n'
  )
  options = (f'--file={file}', '--count=2', '--max_length=4', '--slots=2')
  error = error_of_command(
    capsys,
    *('sample', model, *options, f'--output={output}'),
    *('--max_prompt_length=8', '--min_p=0.1'),
  )
  assert error.startswith(
    f'the lines of {file} must be valid requests, got 1 of'
  )
  assert 'line 3: ' in error
  results = [json.loads(line) for line in output.read_text().splitlines()]
  assert [len(x.get('responses', ())) for x in results] == [2, 1, 0]
  options = (*options, f'--output={output}')
  error = error_of_command(capsys, 'sample', model, *options)
  assert error.startswith(f'--output must be a new file, got {output}')
  # Interrupted in its third line and resumed, the output is the same.
  whole = output.read_bytes()
  output.write_bytes(whole[:-10])
  options = (*options, '--max_prompt_length=8', '--min_p=0.1', '--resume')
  assert 'got 1 of 3' in error_of_command(capsys, 'sample', model, *options)
  assert output.read_bytes() == whole
  # A line whose prompt alone is the same is another one.
  lines = file.read_text()
  for option in ('"n": 3', '"seed": 5', '"id": "b"'):
    file.write_text(lines.replace('"n": 1', option))
    error = error_of_command(capsys, 'sample', model, *options)
    assert "got another line's result in line 2 of" in error
  file.write_text(lines)
  # Other options and policies are refused, also if they give equal responses.
  first_line = whole.splitlines(keepends=True)[0]
  other_model = shutil.copytree(model, tmp_path / 'other')
  weights = bytearray((other_model / 'model.safetensors').read_bytes())
  weights[-2] ^= 1
  (other_model / 'model.safetensors').write_bytes(weights)
  for directory, other in (
    *(
      (model, option) for option in ('--seed=1', '--temperature=0', '--count=3')
    ),
    (model, '--cache_dtype=int8'),
    (other_model, '--slots=2'),
  ):
    output.write_bytes(first_line)
    error = error_of_command(capsys, 'sample', directory, *options, other)
    assert error == (
      '--resume must be given with the policy and the options of the interrupted'
      ' command, got others than those of the results in --output'
    )
    assert output.read_bytes() == first_line


def test_two_commands_do_not_write_one_output(tmp_path, capsys):
  file, output = tmp_path / 'prompts.jsonl', tmp_path / 'responses.jsonl'
  file.write_text('{"prompt": "a"}\n')
  # The other command is in the middle of its first line.
  with output.open('w') as other:
    other.write('{"line": 1, ')
    other.flush()
    fcntl.flock(other, fcntl.LOCK_EX)
    options = (f'--file={file}', f'--output={output}', '--resume')
    error = error_of_command(capsys, 'sample', 'no_model', *options)
    assert error == (
      f'--output must be the file of one command, got {output}, which another'
      ' writes'
    )
    assert output.read_text() == '{"line": 1, '


def test_an_interrupted_output_is_cut_to_its_finished_lines(tmp_path):
  file, output = tmp_path / 'prompts.jsonl', tmp_path / 'responses.jsonl'
  file.write_text('{"prompt": "ab"}\n\n{\n{"prompt": [1]}\n{"prompt": "c"}\n')
  results = [
    {'line': 1, 'prompt': 'ab', 'responses': []},
    {'line': 3, 'error': 'a line must be JSON'},
    {'line': 4, 'prompt': [1], 'responses': []},
  ]
  complete = [json.dumps(result).encode() + b'\n' for result in results]

  def read_output():
    tally = sample_file._finished_lines(epath.Path(file), epath.Path(output))
    return tally.count, tally.refused, tally.last

  assert read_output() == (0, 0, 0)
  for partial_line in (b'', b'{', b'{"line": 5, "prompt": "c"}'):
    output.write_bytes(b''.join(complete) + partial_line)
    assert read_output() == (3, 1, 4)
    assert output.read_bytes() == b''.join(complete)
  for wrong in (b'\n', b'[]\n', b'{"line": 4, "prompt": [2]}\n', complete[0]):
    output.write_bytes(b''.join(complete[:2]) + wrong)
    with pytest.raises(ValueError, match="got another line's result"):
      read_output()
  with pytest.raises(ValueError, match='--output must be local with --resume'):
    sample_file._finished_lines(epath.Path(file), epath.Path('gs://a/b'))


@pytest.mark.parametrize(
  ('options', 'sentence'),
  [
    ((), 'either PROMPT or --file must be given, got neither'),
    (('ab', '--file=x'), 'either PROMPT or --file must be given, got both'),
    (
      ('ab', '--output=x'),
      "--output must be given with --file, got 'x' alone",
    ),
    (
      ('ab', '--resume'),
      '--resume must be given with --file, got --resume alone',
    ),
    (
      ('--file={}', '--resume'),
      '--output must be given with --resume, got none',
    ),
    (('--file=/nowhere',), '--file must be a file, got /nowhere'),
    (('--file={}', '--top_p=2'), 'top_p must lie in (0, 1], got 2.0'),
    (
      ('--file={}', '--seed=-1'),
      '--seed must lie in [0, 4294967295], got -1',
    ),
    (
      ('ab', '--seed=4294967297'),
      '--seed must lie in [0, 4294967295], got 4294967297',
    ),
    (('--file={}', '--max_length=0'), '--max_length must be at least 1, got 0'),
  ],
)
def test_sample_refuses_conflicting_and_invalid_options(
  model, tmp_path, capsys, options, sentence
):
  file = tmp_path / 'prompts.jsonl'
  file.write_text('{"prompt": "ab"}\n')
  options = [option.format(file) for option in options]
  assert error_of_command(capsys, 'sample', model, *options) == sentence


@pytest.mark.parametrize(
  ('options', 'sentence'),
  [
    (('--host=0.0.0.0',), '--token_file must be given with --host=0.0.0.0'),
    (('--port=70000',), '--port must lie in [0, 65536), got 70000'),
    (('--token_file=/nowhere',), '--token_file must be a text file, got'),
  ],
)
def test_serve_refuses_addresses_without_a_token(
  model, capsys, options, sentence
):
  assert sentence in error_of_command(capsys, 'serve', model, *options)


@pytest.mark.parametrize(
  ('options', 'sentence'),
  [
    (['--slots=0'], '--slots must be at least 1, got 0'),
    (['--max_waiting=-1'], '--max_waiting must be at least 0, got -1'),
    (['--max_length=0'], '--max_length must be at least 1, got 0'),
    (['--name=\udcff'], '--name must be valid Unicode'),
    (['--port=0', '--host=::2'], '--host=::2, which others can'),
  ],
)
def test_serve_checks_its_options_before_it_loads_the_policy(
  capsys, options, sentence
):
  # Loading would fail with another message: no such run exists.
  assert sentence in error_of_command(capsys, 'serve', '/nowhere', *options)


def test_a_port_in_use_is_refused_before_the_policy_is_loaded(capsys):
  with socket.create_server(('127.0.0.1', 0)) as other:
    port = other.getsockname()[1]
    error = error_of_command(capsys, 'serve', '/nowhere', f'--port={port}')
  assert f'must be an address to listen on, got 127.0.0.1 and {port}' in error


def test_a_bound_socket_refuses_clients_and_other_servers():
  with open_socket(Address('127.0.0.1', 0)) as bound:
    address = bound.getsockname()
    with pytest.raises(ConnectionRefusedError):
      socket.create_connection(address)
    bound.listen()
    with pytest.raises(ValueError, match='must be an address to listen on'):
      open_socket(Address(*address))


def test_bearer_tokens_are_one_line_of_ascii(tmp_path):
  file = tmp_path / 'token'
  file.write_text('0123456789abcdef\n')
  token = read_token(str(file))
  assert token == '0123456789abcdef'
  Address('0.0.0.0', 1).check(token)
  for text in (
    '',
    'short',
    '0123456789 abcdef',
    '0123456789\nabcdef',
    'é' * 20,
  ):
    file.write_text(text)
    with pytest.raises(ValueError, match='must '):
      read_token(str(file))


def test_given_lengths_replace_the_defaults_of_a_model(model):
  served = load_model(str(model), (12, None), (99, 7))
  assert (served.max_prompt_length, served.max_response_length) == (12, 7)
  with pytest.raises(ValueError, match='--max_length must be at least 1'):
    load_model(str(model), (None, 0))


@pytest.mark.slow
def test_a_real_server_answers_and_ends(model):
  command = (
    *(sys.executable, '-m', 'covrl.cli', 'serve', model, '--port=0'),
    *('--slots=2', '--max_length=8', '--max_prompt_length=8'),
  )
  with (
    subprocess.Popen(
      [str(x) for x in command],
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    ) as process,
    contextlib.ExitStack() as at_end,
  ):
    # Kills the process before `Popen` waits for it, also if the test fails.
    at_end.callback(process.kill)
    assert process.stderr is not None
    lines = (line.strip() for line in process.stderr)
    line = next(line for line in lines if line.startswith('listening on '))
    url = line.removeprefix('listening on ')
    request = urllib.request.Request(
      f'{url}/v1/completions',
      json.dumps({'prompt': 'ab', 'max_tokens': 9}).encode(),
      {'Content-Type': 'application/json'},
    )
    with pytest.raises(urllib.error.HTTPError) as error:
      urllib.request.urlopen(request)
    assert b'max_tokens must lie in [1, 8], got 9' in error.value.read()
    body = json.dumps({'prompt': 'ab', 'seed': 1}).encode()
    request.data = body
    with urllib.request.urlopen(request) as answer:
      assert len(json.load(answer)['choices']) == 1
    # A client that sends half a request does not hold up the end.
    address = url.removeprefix('http://').split(':')
    with socket.create_connection((address[0], int(address[1]))) as client:
      client.sendall(
        b'POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n'
        b'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{'
      )
      time.sleep(0.5)
      process.send_signal(signal.SIGINT)
      assert process.wait(60) == 130
    assert 'Traceback' not in ''.join(lines)


@pytest.mark.parametrize('command', ['serve', 'sample'])
def test_options_of_the_cache_reach_the_engine(
  command, model, tmp_path, capsys, monkeypatch
):
  received = []

  def engine(*_, caching, **kwargs):
    received.append(caching)
    raise RuntimeError('stopped')

  monkeypatch.setattr(policy, 'RequestEngine', engine)
  arguments = [command, model, '--max_length=4', '--max_prompt_length=8']
  if command == 'sample':
    file = tmp_path / 'prompts.jsonl'
    file.write_text('{"prompt": "ab"}\n')
    arguments.append(f'--file={file}')
  for cache_options in ((), ('--cache_dtype=int8', '--prefill_chunk=4')):
    with pytest.raises(RuntimeError, match='stopped'):
      run_command(*arguments, *cache_options)
  assert received == [Caching(), Caching(chunk=4, int8=True)]
  error = error_of_command(capsys, *arguments, '--prefill_chunk=-1')
  assert error == '--prefill_chunk must be at least 0, got -1'


def test_options_of_the_cache_need_a_file(model, capsys):
  error = error_of_command(capsys, 'sample', model, 'ab', '--cache_dtype=int8')
  assert error == ("--cache_dtype must be given with --file, got 'int8' alone")
