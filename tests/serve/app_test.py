# SPDX-License-Identifier: Apache-2.0
"""The HTTP interface: answers, streams, disconnects, limits, bearer token, failures."""

import asyncio
import contextlib
import functools
import math

import pytest
from serve.asgi import complete, request, running
from serve.conftest import TOKENIZER

from covrl.serve import app as serve_app
from covrl.serve import sample_lines
from covrl.serve.app import make_app
from covrl.serve.metrics import Metrics
from covrl.serve.worker import Worker

GREEDY = {'prompt': 'ab', 'temperature': 0, 'seed': 0, 'max_tokens': 12}


class Server:
  """An application with its worker, metrics and failures."""

  def __init__(self, engine, *, token=None, max_waiting=20):
    self.metrics, self.failures = Metrics(), []
    self.worker = Worker(
      engine,
      TOKENIZER,
      max_waiting=max_waiting,
      metrics=self.metrics,
      on_failure=self.failures.append,
    )
    self.app = make_app(
      self.worker, TOKENIZER, self.metrics, model='tiny', token=token
    )

  async def becomes_idle(self):
    """Waits until nothing is sampled; returns false after ten seconds."""
    for _ in range(1000):
      if not self.worker._unfinished and not self.worker._request_numbers:
        return True
      await asyncio.sleep(0.01)
    return False


def serve(engine, scenario, **settings):
  """Runs a scenario, a coroutine function of the server."""

  async def run():
    server = Server(engine, **settings)
    async with running(server.app):
      await scenario(server)
      assert server.failures or await server.becomes_idle()
    assert server.failures or not engine.num_running + engine.num_waiting

  asyncio.run(run())


def test_answers_completions(engine):
  async def scenario(server):
    answer = await complete(server.app, **GREEDY, model='tiny', logprobs=0)
    assert answer.status == 200
    body = answer.json
    assert body['object'] == 'text_completion'
    assert (body['model'], body['seed']) == ('tiny', 0)
    (choice,) = body['choices']
    logprobs = choice['logprobs']
    assert len(logprobs['token_ids']) == len(logprobs['token_logprobs']) <= 12
    assert logprobs['token_logprobs'] == logprobs['sampling_logprobs']
    assert choice['text'] == TOKENIZER.decode(logprobs['token_ids'])
    assert choice['finish_reason'] in ('stop', 'length')
    usage = body['usage']
    assert usage['completion_tokens'] == len(logprobs['token_ids'])
    assert usage['total_tokens'] == usage['prompt_tokens'] + len(
      logprobs['token_ids']
    )
    two_prompts = await complete(
      server.app, prompt=['ab', 'c'], n=2, seed=5, max_tokens=6
    )
    choices = two_prompts.json['choices']
    assert [choice['index'] for choice in choices] == [0, 1, 2, 3]
    one_prompt = await complete(
      server.app, prompt='c', n=2, seed=5, max_tokens=6
    )
    texts = [choice['text'] for choice in choices]
    assert [choice['text'] for choice in one_prompt.json['choices']] == texts[
      2:
    ]

  serve(engine, scenario)


def test_streamed_parts_add_up_to_the_whole_answer(engine):
  async def scenario(server):
    options = {'prompt': 'ab', 'n': 3, 'seed': 3, 'max_tokens': 20}
    answer = await complete(server.app, **options)
    stream = await complete(
      server.app, **options, stream=True, stream_options={'include_usage': True}
    )
    assert stream.headers['content-type'].startswith('text/event-stream')
    *events, last = stream.events
    assert last['choices'] == []
    assert last['usage'] == answer.json['usage']
    texts, reasons = [''] * 3, [None] * 3
    for event in events:
      assert event['usage'] is None
      (choice,) = event['choices']
      texts[choice['index']] += choice['text']
      reasons[choice['index']] = choice['finish_reason']
    choices = answer.json['choices']
    assert texts == [choice['text'] for choice in choices]
    assert reasons == [choice['finish_reason'] for choice in choices]
    # A segment of tokens at a time.
    assert len(events) > 3

  serve(engine, scenario)


def test_stop_strings_end_responses(engine):
  async def scenario(server):
    options, stop_string, text, seed = {}, '', '', 0
    while not stop_string:
      seed += 1
      options = {**GREEDY, 'max_tokens': 24, 'temperature': 1, 'seed': seed}
      (choice,) = (await complete(server.app, **options)).json['choices']
      text = choice['text']
      stop_string = ''.join(x for x in text[3:] if x.isascii() and x.isalnum())[
        :1
      ]
    answer = await complete(server.app, **options, stop=stop_string)
    (choice,) = answer.json['choices']
    assert choice['text'] == text[: text.index(stop_string)]
    assert choice['finish_reason'] == 'stop'
    assert answer.json['usage']['completion_tokens'] < 24
    ids = TOKENIZER.encode(stop_string)
    with_stop_token = await complete(
      server.app, **options, stop_token_ids=ids[:1]
    )
    assert with_stop_token.json['choices'][0]['finish_reason'] in (
      'stop',
      'length',
    )

  serve(engine, scenario)


def test_disconnected_clients_are_cancelled(engine):
  async def scenario(server):
    for stream in (False, True):
      disconnect_event = asyncio.Event()
      task = asyncio.create_task(
        complete(
          server.app,
          prompt='a',
          n=24,
          max_tokens=24,
          stream=stream,
          disconnect_event=disconnect_event,
        )
      )
      while not server.worker._request_numbers:
        await asyncio.sleep(0.001)
      disconnect_event.set()
      # The server may raise that the client is gone.
      with contextlib.suppress(Exception):
        await task
      assert await server.becomes_idle()
    reasons = server.metrics.get('responses_total', 'finish_reason="cancelled"')
    assert reasons > 0
    assert (await complete(server.app, **GREEDY)).status == 200

  serve(engine, scenario)


def test_concurrent_clients_are_answered_exactly_or_get_status_429(engine):
  """200 clients: each is answered exactly, or gets 429 beyond the queue."""

  async def scenario(server):
    async def client(seed):
      answer = await complete(
        server.app, prompt='ab', seed=seed, max_tokens=1 + seed % 9
      )
      if answer.status == 429:
        refused.append(seed)
        assert answer.headers['retry-after'] == '1'
        assert 'the queue must have room for 1 responses' in answer.error
      else:
        assert answer.status == 200
        texts[seed] = answer.json['choices'][0]['text']

    texts, waves = {}, []
    pending = list(range(200))
    while pending:
      refused: list[int] = []
      await asyncio.gather(*map(client, pending))
      waves.append((len(pending), len(refused)))
      pending = refused
    # Slots and queue together hold 64.
    assert waves[0][0] == 200
    assert waves[0][1] > 0
    assert len(texts) == 200
    for seed in (0, 100, 199):
      before = texts[seed]
      await client(seed)
      assert texts[seed] == before
    count = server.metrics.get('requests_total', 'status="200"')
    assert count == 203
    assert server.metrics.get('requests_total', 'status="429"') == sum(
      refusals for _, refusals in waves
    )

  serve(engine, scenario, max_waiting=60)


def test_invalid_requests_get_one_sentence_and_the_server_goes_on(engine):
  async def scenario(server):
    for fields, status, sentence in (
      ({'prompt': 'a' * 99}, 400, 'the prompt must have 1 to 16 tokens, got'),
      ({'max_tokens': 25}, 400, 'max_tokens must lie in [1, 24], got 25'),
      ({'top_p': 2}, 400, 'top_p must lie in (0, 1], got 2.0'),
      ({'top_k': -1}, 400, 'top_k must be a whole number from 0, got -1'),
      ({'stop': '<|im_end|>'}, 400, 'stop strings must be text that tokens'),
      ({'maxtokens': 2}, 400, "of a completion, got 'maxtokens'; did you mean"),
      ({'n': 25}, 400, 'prompts × n must be at most 24, got 25'),
      ({'model': 'other'}, 404, "model must be 'tiny', got 'other'"),
    ):
      answer = await complete(server.app, **{**GREEDY, **fields})
      assert (answer.status, sentence in answer.error) == (status, True)
    for body, headers, status, sentence in (
      (b'{', (), 400, 'a request must be JSON, got'),
      (b'[' * 100_000, (), 400, 'a request must be JSON, got'),
      (b'[]', (), 400, 'a request must be a JSON object, got'),
      (b'\xff', (), 400, 'a request must be JSON, got'),
      (b'{"n": 1, "n": 2}', (), 400, "every name once, got 'n' twice"),
      (b' ' * 9_000_000, (), 413, 'a request must have at most 8388608 bytes'),
      (b'{}', (('content-type', 'text/plain'),), 415, 'the content type must'),
      (b'{}', (('host', 'evil.example'),), 403, 'a loopback name, got'),
    ):
      answer = await request(
        server.app, 'POST', '/v1/completions', body=body, headers=headers
      )
      assert (answer.status, sentence in answer.error) == (status, True)
    answer = await request(server.app, 'GET', '/v1/complete')
    assert (answer.status, 'GET /v1/complete' in answer.error) == (404, True)
    answer = await request(server.app, 'GET', f'/{"a" * 100_000}')
    assert answer.status == 404
    assert len(answer.error) == 1000
    answer = await request(server.app, 'GET', '/v1/completions')
    assert answer.status == 405
    assert (await complete(server.app, **GREEDY)).status == 200

  serve(engine, scenario)


def test_bodies_that_arrive_too_slowly_are_refused(engine, monkeypatch):
  """A client that sends half a request, and one that does so at the shutdown."""
  monkeypatch.setattr(serve_app, 'BODY_SECONDS', 0.2)

  async def scenario(server):
    post = functools.partial(request, server.app, 'POST', '/v1/completions')
    answer = await post(body=b'{"n"', body_end=asyncio.Event())
    assert (answer.status, answer.error) == (
      408,
      'a request must arrive within 0.2 s, got 4 bytes',
    )
    monkeypatch.setattr(serve_app, 'BODY_SECONDS', 60.0)
    task = asyncio.create_task(post(body=b'{', body_end=asyncio.Event()))
    await asyncio.sleep(0.05)
    task.cancel()
    answer = await task
    assert (answer.status, answer.error) == (
      503,
      'the server is shutting down',
    )
    assert (await complete(server.app, **GREEDY)).status == 200

  serve(engine, scenario)


def test_lists_the_model_health_and_metrics(engine):
  async def scenario(server):
    await complete(server.app, **GREEDY)
    (model,) = (await request(server.app, 'GET', '/v1/models')).json['data']
    assert (model['id'], model['max_tokens']) == ('tiny', 24)
    assert (await request(server.app, 'GET', '/health')).body == b'ok\n'
    answer = await request(server.app, 'GET', '/metrics')
    assert answer.headers['content-type'].startswith(
      'text/plain; version=0.0.4'
    )
    values = dict(
      line.rsplit(' ', 1)
      for line in answer.body.decode().splitlines()
      if not line.startswith('#')
    )
    assert values['covrl_slots'] == '4'
    assert values['covrl_requests_total{status="200"}'] == '1'
    assert values['covrl_response_seconds_bucket{le="+Inf"}'] == '1'
    assert 1 <= int(values['covrl_generated_tokens_total']) <= 12
    assert values['covrl_running'] == values['covrl_waiting'] == '0'

  serve(engine, scenario)


def test_a_bearer_token_is_required_where_one_is_set(engine):
  async def scenario(server):
    for authorization in (
      '',
      'Bearer other',
      'Basic 0123456789abcdef',
      'Bearer0123456789abcdef',
      'Bearer é',
    ):
      headers = (('authorization', authorization), ('host', '10.0.0.1'))
      for path in ('/v1/models', '/metrics'):
        answer = await request(server.app, 'GET', path, headers=headers)
        assert answer.status == 401
    for scheme in ('Bearer', 'bearer', 'BEARER'):
      headers = (
        ('authorization', f'{scheme} 0123456789abcdef'),
        ('host', '10.0.0.1'),
      )
      answer = await request(server.app, 'GET', '/v1/models', headers=headers)
      assert answer.status == 200
    assert (await request(server.app, 'GET', '/health')).status == 200

  serve(engine, scenario, token='0123456789abcdef')


@pytest.mark.parametrize('stream', [False, True])
def test_an_engine_that_fails_answers_all_clients(engine, monkeypatch, stream):
  def fail():
    raise RuntimeError('out of memory')

  async def scenario(server):
    monkeypatch.setattr(engine, 'step', fail)
    options = {**GREEDY, 'stream': stream}
    answers = await asyncio.gather(
      *(complete(server.app, **options) for _ in range(3))
    )
    for answer in answers:
      assert b'the engine has ended: out of memory' in answer.body
      assert stream or answer.status == 503
    (error,) = server.failures
    assert str(error) == 'out of memory'
    assert (await complete(server.app, **options)).status == 503
    assert (await request(server.app, 'GET', '/health')).status == 503

  serve(engine, scenario)
  monkeypatch.undo()
  for number in range(1, engine._num_submitted + 1):
    engine.cancel(number)
  assert engine.step() == {}


def without_logits_of(engine, request_number):
  """Returns a step function in which a request's log-probabilities are NaN."""
  step = type(engine).step

  def step_without_logits():
    return {
      number: output._replace(sampling_logprobs=[math.nan] * len(output.tokens))
      if number == request_number
      else output
      for number, output in step(engine).items()
    }

  return step_without_logits


@pytest.mark.parametrize('stream', [False, True])
def test_a_response_without_finite_logits_is_an_error_and_others_go_on(
  engine, monkeypatch, stream
):
  sentence = b'the logits of a response must be finite, got nan'

  async def scenario(server):
    first = engine._num_submitted + 1
    monkeypatch.setattr(engine, 'step', without_logits_of(engine, first))
    answer = await complete(server.app, **GREEDY, stream=stream)
    assert sentence in answer.body
    assert stream or answer.status == 500
    assert (await complete(server.app, **GREEDY)).status == 200
    assert not server.failures

  serve(engine, scenario)


def test_lines_without_finite_logits_have_an_error(engine, monkeypatch):
  first = engine._num_submitted + 1
  monkeypatch.setattr(engine, 'step', without_logits_of(engine, first))
  lines = [b'{"prompt": "a"}', b'{"prompt": "b"}']
  results = list(sample_lines(engine, TOKENIZER, lines, defaults={}, seed=0))
  assert results[0]['error'].startswith('the logits of a response must be')
  assert 'responses' in results[1]
