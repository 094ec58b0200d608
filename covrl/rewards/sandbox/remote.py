# SPDX-License-Identifier: Apache-2.0
"""Remote backend: a server with SandboxFusion's interface runs the programs.

The server executes `POST /run_code`; output is compared here, so expected results
are not sent. The server is responsible for containment.
"""

from __future__ import annotations

import http.client
import json
import pathlib
import urllib.request
from typing import Any

from covrl.rewards.outcome import Outcome, Status
from covrl.rewards.sandbox.limits import Limits
from covrl.rewards.sandbox.sandbox import SandboxError
from covrl.rewards.sandbox.seeds import call_seed, derive_seed
from covrl.rewards.sandbox.session import compare_answer, compare_output
from covrl.rewards.sandbox.test_formats import (
  CallTest,
  PrintTest,
  SuiteTest,
  Test,
)

# Seconds for the server's queue and the network, beyond the program's time.
_OVERHEAD_SECONDS = 60.0
_PROGRAM_SCRIPT = pathlib.Path(__file__).with_name('_program.py')
_SEED_SCRIPT = pathlib.Path(__file__).with_name('_random_seed.py')
# Code that seeds the generators of random numbers and defines no name.
_SEED_TEMPLATE = """
exec({script!r} + '\\nseed_generators({seed})', {{}})
"""
# Code after that: executes the program, whose imports from `__future__` could not
# come after other code.
_RUN_TEMPLATE = """
exec(compile({program!r}, 'program.py', 'exec', dont_inherit=True))
"""
# Code after `_program.py` and the seed: compiles the program, calls a function of it
# with the arguments on standard input, and writes the result, or the error.
_CALL_TEMPLATE = """
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
# Begins the output if the program does not compile.
_COMPILE_ERROR_PREFIX = b'not compiled: '


class RemoteSession:
  """Runs a program's tests on a server, one after the other.

  Args:
    url: address of the server.
    program: source code.
    seconds: time limit of each test.
    limits: resource limits; the memory limit is sent to the server.

  Attributes:
    was_killed: whether a test exceeded its time limit.
  """

  def __init__(
    self, url: str, program: bytes, seconds: float, limits: Limits
  ) -> None:
    self._url = f'{url.rstrip("/")}/run_code'
    self._program = program
    self._seconds = seconds
    self._limits = limits
    self.was_killed = False

  def __enter__(self) -> RemoteSession:
    return self

  def __exit__(self, *error: object) -> None:
    return

  def check(self, test: Test) -> Outcome:
    """Runs a test and returns its outcome.

    Raises:
      SandboxError: if the server cannot be reached or fails, or the test is an
        assert suite, which needs two sandboxes.
    """
    match test:
      case PrintTest():
        return self._check_output(test)
      case CallTest():
        return self._check_result(test)
      case SuiteTest():
        raise SandboxError(
          'asserts must be run in a local sandbox, got the server at'
          f' {self._url}'
        )

  def _check_output(self, test: PrintTest) -> Outcome:
    """Runs the program and compares its printed output."""
    seed = derive_seed(self._program, test.stdin)
    program = _RUN_TEMPLATE.format(program=self._program)
    run = self._run(_seed_code(seed) + program, test.stdin)
    if isinstance(run, Outcome):
      return run
    outcome = compare_output(run['stdout'].encode(errors='replace'), test)
    printed_correctly = outcome.score and test.stdout.strip()
    if printed_correctly or not run['return_code']:
      return outcome
    detail = f'it exited with {run["return_code"]}'
    return Outcome(0.0, Status.CRASH, detail)

  def _check_result(self, test: CallTest) -> Outcome:
    """Calls a function of the program and compares its result."""
    call = _CALL_TEMPLATE.format(
      program=self._program, name=test.name, prefix=_COMPILE_ERROR_PREFIX
    )
    seed_code = _seed_code(call_seed(self._program, test))
    code = _PROGRAM_SCRIPT.read_text(encoding='utf-8') + seed_code + call
    run = self._run(code, test.arguments_json)
    if isinstance(run, Outcome):
      return run
    text = run['stdout'].encode(errors='replace')
    if text.startswith(_COMPILE_ERROR_PREFIX):
      return Outcome(0.0, Status.UNPARSABLE, 'it does not compile')
    outcome = compare_answer(text, test)
    return outcome or Outcome(0.0, Status.CRASH, 'it returned nothing')

  def _run(self, code: str, stdin: bytes) -> dict[str, Any] | Outcome:
    """Returns the server's result, or the outcome of a killed program."""
    reply = self._post(
      {
        'code': code,
        'language': 'python',
        'stdin': stdin.decode(errors='replace'),
        'run_timeout': self._seconds,
        'memory_limit_MB': self._limits.memory >> 20,
      }
    )
    match reply:
      case {'run_result': {'status': 'TimeLimitExceeded'}}:
        self.was_killed = True
        detail = f'it took longer than {self._seconds:g} s'
        return Outcome(0.0, Status.TIMEOUT, detail)
      case {
        'status': 'Success' | 'Failed',
        'run_result': {'status': 'Finished', 'stdout': str()} as run,
      }:
        return {'return_code': 0, **run}
    raise SandboxError(f'the server at {self._url} answered {reply!r:.200}')

  def _post(self, job: dict[str, Any]) -> Any:
    """Sends a job to the server; returns its decoded reply."""
    request = urllib.request.Request(
      self._url,
      json.dumps(job).encode(),
      {'Content-Type': 'application/json'},
    )
    try:
      with urllib.request.urlopen(
        request, timeout=self._seconds + _OVERHEAD_SECONDS
      ) as response:
        return json.load(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
      reason = getattr(error, 'reason', None) or error
      raise SandboxError(
        f'the server at {self._url} did not answer: {reason}'
      ) from None


def _seed_code(seed: int) -> str:
  """Returns code that seeds the generators of random numbers."""
  script = _SEED_SCRIPT.read_text(encoding='utf-8')
  return _SEED_TEMPLATE.format(script=script, seed=seed)
