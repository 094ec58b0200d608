# SPDX-License-Identifier: Apache-2.0
"""A judge that has programs run elsewhere, by a server of SandboxFusion's kind.

The server runs `POST /run_code`; what comes out is compared here, so it is not
told what is expected either. How well it holds programs is its own affair.
"""

from __future__ import annotations

import http.client
import json
import marshal
import pathlib
import urllib.request
from typing import Any

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.sandbox import SandboxError
from covrl.rewards.sandbox.session import compare_answer, compare_output
from covrl.rewards.sandbox.test_formats import (
  CallTest,
  PrintTest,
  SuiteTest,
  Test,
)

# What a server may take beyond a program's time: for its queue and the network.
_PATIENCE = 60.0
_RUNNER = pathlib.Path(__file__).with_name('_runner.py')
_CALL = """
program = Program({program!r})
reason = program.compile()
os.dup2(os.dup(1), 3)
os.dup2(os.open('/dev/null', os.O_WRONLY), 1)
if reason:
  os.write(3, {prefix!r} + reason.encode(errors='replace'))
else:
  import json
  _call(program, {name!r}, json.loads(_read(0)))
os._exit(0)
"""
_PREFIX = b'not compiled: '


class RemoteSession:
  """A program that a server puts to one test after the other.

  Args:
    url: of the server.
    program: its source.
    seconds: that each test may take.
    limits: whose memory the server is told.

  Attributes:
    is_over: whether it ran out of time once.
  """

  def __init__(
    self, url: str, program: bytes, seconds: float, limits: Limits
  ) -> None:
    self._url = f'{url.rstrip("/")}/run_code'
    self._program = program
    self._seconds = seconds
    self._limits = limits
    self.is_over = False

  def __enter__(self) -> RemoteSession:
    return self

  def __exit__(self, *error: object) -> None:
    return

  def check(self, test: Test) -> Outcome:
    """What comes of the program at a test.

    Raises:
      SandboxError: the server cannot be reached or did not do its work, or the
        test is one for which two sandboxes are needed.
    """
    match test:
      case PrintTest():
        return self._check_output(test)
      case CallTest():
        return self._check_result(test)
      case SuiteTest():
        raise SandboxError('a local sandbox is required for asserts')

  def _check_output(self, test: PrintTest) -> Outcome:
    run = self._run(self._program.decode(errors='replace'), test.stdin)
    if isinstance(run, Outcome):
      return run
    outcome = compare_output(run['stdout'].encode(errors='replace'), test)
    if outcome.score or not run['return_code']:
      return outcome
    detail = f'it exited with {run["return_code"]}'
    return Outcome(0.0, Status.CRASH, detail)

  def _check_result(self, test: CallTest) -> Outcome:
    tail = _CALL.format(program=self._program, name=test.name, prefix=_PREFIX)
    code = _RUNNER.read_text(encoding='utf-8') + tail
    run = self._run(code, json.dumps(marshal.loads(test.arguments)).encode())
    if isinstance(run, Outcome):
      return run
    text = run['stdout'].encode(errors='replace')
    if text.startswith(_PREFIX):
      return Outcome(0.0, Status.UNPARSABLE, 'it does not compile')
    outcome = compare_answer(text, test)
    return outcome or Outcome(0.0, Status.CRASH, 'it returned nothing')

  def _run(self, code: str, stdin: bytes) -> dict[str, Any] | Outcome:
    """What the server says of a run, or what the program was killed for."""
    answer = self._ask(
      {
        'code': code,
        'language': 'python',
        'stdin': stdin.decode(errors='replace'),
        'run_timeout': self._seconds,
        'memory_limit_MB': self._limits.memory >> 20,
      }
    )
    match answer:
      case {'run_result': {'status': 'TimeLimitExceeded'}}:
        self.is_over = True
        detail = f'it took longer than {self._seconds:g} s'
        return Outcome(0.0, Status.TIMEOUT, detail)
      case {
        'status': 'Success' | 'Failed',
        'run_result': {'status': 'Finished', 'stdout': str()} as run,
      }:
        return {'return_code': 0, **run}
    raise SandboxError(f'the server at {self._url} answered {answer!r:.200}')

  def _ask(self, question: dict[str, Any]) -> Any:
    request = urllib.request.Request(
      self._url,
      json.dumps(question).encode(),
      {'Content-Type': 'application/json'},
    )
    try:
      with urllib.request.urlopen(
        request, timeout=self._seconds + _PATIENCE
      ) as response:
        return json.load(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
      reason = getattr(error, 'reason', None) or error
      raise SandboxError(
        f'the server at {self._url} did not answer: {reason}'
      ) from None
