# SPDX-License-Identifier: Apache-2.0
"""A running sandbox: starts it, sends jobs to it and collects their output.

Everything that comes out of a sandbox is treated as untrusted bytes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import marshal
import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from covrl.rewards.sandbox.launcher import Launcher
from covrl.rewards.sandbox.limits import (
  EndReason,
  Limits,
  OutputPipe,
  supervise_job,
)
from covrl.rewards.sandbox.processor_wait import ProcessorWait
from covrl.rewards.sandbox.resource_usage import (
  Usage,
  count_oom_kills,
  descendants,
  measure,
)
from covrl.rewards.sandbox.scripts import compile_script
from covrl.rewards.sandbox.seccomp import make_filter

# Executes marshalled scripts one after the other in the main module.
_START_CODE = (
  'import marshal,os,sys\n'
  'for script in marshal.loads(os.pread({},1<<20,0)):exec(marshal.loads(script))'
)
_RUNNER_SCRIPTS = (
  '_program.py',
  '_random_seed.py',
  '_descendants.py',
  '_job_runner.py',
)
_TIMEOUT = 30.0  # seconds for a sandbox to start, answer or end


class SandboxError(Exception):
  """A sandbox failed, for a reason other than the program."""


@dataclasses.dataclass(frozen=True)
class JobResult:
  """Result of a job in a sandbox.

  Attributes:
    end_reason: reason for which the job ended.
    output: standard output, up to a limit.
    result: bytes written to the result descriptor, up to a limit.
    report: report of the sandbox's process 1.
    is_sigkill: whether SIGKILL ended the job's process, or process 1.
    oom_kills: number of processes of the machine that the kernel killed
      meanwhile for lack of memory; counted only after a SIGKILL.
  """

  end_reason: EndReason
  output: bytes = b''
  result: bytes = b''
  report: bytes = b''
  is_sigkill: bool = False
  oom_kills: int = 0


class Sandbox:
  """A running sandbox; must be closed by the thread that made it.

  Args:
    launcher: starts the sandbox.
    limits: resource limits of its programs.
    cpu: the processor to run on; any if `None`.

  Attributes:
    is_reusable: whether another job may run in it: nothing was killed and no
      files were left behind.

  Raises:
    SandboxError: if the sandbox cannot be started.
  """

  def __init__(
    self, launcher: Launcher, limits: Limits, cpu: int | None = None
  ) -> None:
    self.is_reusable = True
    self._launcher = launcher
    self._limits = limits
    self._stack = contextlib.ExitStack()
    try:
      self._start(cpu)
    except BaseException:
      self.close()
      raise

  def __enter__(self) -> Sandbox:
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def close(self) -> None:
    """Kills all processes of the sandbox; none is left when this returns."""
    self.is_reusable = False
    self._stack.close()

  def usage(self, *, exact: bool = False) -> Usage:
    """Measures the current usage; exactly only near the limit, or on request."""
    limit = 0 if exact else self._limits.memory
    return measure(self._pid, self._launcher.writable, limit)

  def load(self, program: bytes, seconds: float) -> JobResult:
    """Compiles a program; `report` is a dot followed by the error, if any.

    Raises:
      SandboxError: if the sandbox ended, for a reason other than the program.
    """
    with memory_file(program) as source:
      return self._run_job({'kind': 'load'}, [source], seconds, [])

  def run(
    self,
    job: Mapping[str, Any],
    stdin: bytes,
    *,
    seconds: float,
    max_output: int,
    max_result: int,
    pipes: Sequence[int] = (),
    partner: Sandbox | None = None,
  ) -> JobResult:
    """Runs a job in a fresh process.

    Args:
      job: the job description for the runner, with a seed.
      stdin: the program's input.
      seconds: time limit, after which everything in the sandbox is killed; see
        `supervise_job`.
      max_output: maximal bytes of output; a program that prints more is killed.
      max_result: maximal bytes of the result; a program that writes more is
        killed.
      pipes: descriptors that the process receives as 4 and 5; closed here.
      partner: a sandbox whose job this one waits for: its waits for a processor
        do not count, either.

    Raises:
      SandboxError: if the sandbox ended, for a reason other than the program.
    """
    with contextlib.ExitStack() as stack:
      for pipe in pipes:
        stack.callback(os.close, pipe)
      file = stack.enter_context(memory_file(stdin))
      outputs = [OutputPipe(stack, size) for size in (max_output, max_result)]
      descriptors = [file, *(pipe.write_end for pipe in outputs), *pipes]
      run = self._run_job(
        {**job, 'seconds': seconds}, descriptors, seconds, outputs, partner
      )
      # `<status> <1 or 0>`: whether the writable directories are empty.
      if run.end_reason is not EndReason.ENDED or not run.report.endswith(
        b' 1'
      ):
        self.close()
      return run

  def _run_job(
    self,
    job: Mapping[str, Any],
    descriptors: Sequence[int],
    seconds: float,
    outputs: Sequence[OutputPipe],
    partner: Sandbox | None = None,
  ) -> JobResult:
    """Sends a job to process 1 and supervises it until it ends."""
    oom_kills = count_oom_kills()
    sandboxes = (self,) if partner is None else (self, partner)
    waits = [ProcessorWait(sandbox._pid) for sandbox in sandboxes]
    end_reason, report = EndReason.LOST, b''
    # Fails if process 1 has ended.
    with contextlib.suppress(OSError):
      socket.send_fds(self._control, [marshal.dumps(dict(job))], descriptors)
      for pipe in outputs:
        pipe.close_write_end()
      end_reason, report = supervise_job(
        self._control,
        outputs,
        seconds,
        self.usage,
        lambda: sum(wait.seconds() for wait in waits),
        self._limits,
      )
    if end_reason is EndReason.STARVED:
      raise SandboxError(
        'the program had no processor for most of the time: others use them'
      )
    if end_reason is EndReason.LOST:
      is_sigkill = self._is_runner_killed()
      report = self._last_error().encode()
    else:
      is_sigkill = job['kind'] != 'load' and _is_sigkill(report)
    return JobResult(
      end_reason,
      *(bytes(pipe.data) for pipe in outputs),
      report=report,
      is_sigkill=is_sigkill,
      oom_kills=count_oom_kills() - oom_kills if is_sigkill else 0,
    )

  def _is_runner_killed(self) -> bool:
    """Returns whether SIGKILL ended process 1, which may be the program's doing.

    In a pid namespace it cannot be: the kernel drops a SIGKILL that a process
    sends to process 1 of its own namespace. Nor can it be where the seccomp filter
    refuses signals to others.

    Raises:
      SandboxError: if process 1 ended, for a reason other than the program.
    """
    try:
      status = self._process.wait(_TIMEOUT)
    except subprocess.TimeoutExpired:
      return False
    if status == os.EX_OSERR:
      raise SandboxError(f'no process could be started: {self._last_error()}')
    # Bubblewrap reports a signal that ended process 1 as shells do; a negative
    # status is that of bubblewrap itself.
    is_killed = status in (-signal.SIGKILL, 128 + signal.SIGKILL)
    if not self._launcher.confines_signals:
      return is_killed
    if is_killed or (status < 0 and self._launcher.has_namespaces):
      raise SandboxError('the sandbox was killed from outside')
    return False

  def _start(self, cpu: int | None) -> None:
    """Starts the sandbox and sends its settings.

    Raises:
      SandboxError: the sandbox cannot be started.
    """
    judge_end, runner_end = socket.socketpair(
      socket.AF_UNIX, socket.SOCK_SEQPACKET
    )
    self._control = self._stack.enter_context(judge_end)
    judge_end.settimeout(_TIMEOUT)
    self._errors = self._stack.enter_context(memory_file(b''))
    with runner_end:
      try:
        self._pid = self._spawn(runner_end.fileno())
        runner_end.close()
        if cpu is not None:
          os.sched_setaffinity(self._pid, {cpu})
        self._send_settings()
      except (OSError, ValueError) as error:
        raise SandboxError(self._last_error() or str(error)) from None

  def _last_error(self) -> str:
    """Returns the last line of bubblewrap's or process 1's standard error."""
    text = os.pread(self._errors, 1 << 16, 0).decode(errors='replace')
    return next((line for line in text.splitlines()[::-1] if line.strip()), '')

  def _spawn(self, control: int) -> int:
    """Starts the sandbox; returns the host's id of its process 1."""
    with (
      memory_file(
        marshal.dumps(list(map(compile_script, _RUNNER_SCRIPTS)))
      ) as code_fd,
      memory_file(make_filter(processes=True)) as filter_fd,
      contextlib.ExitStack() as stack,
    ):
      read_end, write_end = os.pipe()
      info = stack.enter_context(os.fdopen(read_end, 'rb', buffering=0))
      info_writer = stack.enter_context(os.fdopen(write_end, 'wb', buffering=0))
      process = subprocess.Popen(
        [
          *self._launcher.command(filter_fd=filter_fd, info_fd=write_end),
          *(
            '-s',
            '-P',
            '-S',
            '-B',
            '-c',
            _START_CODE.format(code_fd),
            str(control),
          ),
        ],
        env=self._launcher.environment,
        cwd='/',
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=self._errors,
        pass_fds=(control, code_fd, filter_fd, write_end),
        # Ctrl-C is handled by the trainer.
        start_new_session=True,
      )
      self._process = process
      info_writer.close()
      if not self._launcher.has_namespaces:
        self._stack.callback(_stop_runner, self._control, process)
        return process.pid
      self._stack.callback(_wait_for_bubblewrap, process)
      pid = _read_pid(info)
      self._stack.callback(_kill, os.pidfd_open(pid))
      return pid

  def _send_settings(self) -> None:
    """Sends the settings to process 1 and waits until it is ready."""
    settings = {
      'limits': self._limits.settings(),
      'writable': self._launcher.writable,
      'packages': [
        (
          package.name,
          self._launcher.package_path(package.file),
          package.directory and self._launcher.package_path(package.directory),
        )
        for package in self._launcher.packages
      ],
      **self._launcher.settings(),
    }
    self._control.send(marshal.dumps(settings))
    if self._control.recv(64) != b'ready':
      raise OSError('process 1 of the sandbox did not become ready')


def _is_sigkill(report: bytes) -> bool:
  """Returns whether SIGKILL ended a process, by the report of process 1."""
  if not report:
    return False
  status = int(report.split()[0])
  return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@contextlib.contextmanager
def memory_file(data: bytes) -> Iterator[int]:
  """Context with the descriptor of an anonymous in-memory file."""
  descriptor = os.memfd_create('judge')
  try:
    with open(descriptor, 'wb', closefd=False) as file:
      file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    yield descriptor
  finally:
    os.close(descriptor)


def _read_pid(info: IO[bytes]) -> int:
  """Reads the id of the process that bubblewrap has started."""
  poll = select.poll()
  poll.register(info, select.POLLIN)
  text = b''
  while poll.poll(_TIMEOUT * 1000) and (part := info.read(4096)):
    text += part
  try:
    return json.loads(text)['child-pid']
  except ValueError:
    raise OSError(
      'bubblewrap did not report the process that it has started'
    ) from None


def _kill(pidfd: int) -> None:
  """Kills process 1 and thereby its pid namespace."""
  with contextlib.suppress(ProcessLookupError):
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
  os.close(pidfd)


def _wait_for_bubblewrap(process: subprocess.Popen[bytes]) -> None:
  """Waits for bubblewrap, which exits after its namespace."""
  try:
    process.wait(_TIMEOUT)
  except subprocess.TimeoutExpired:
    # It hangs, and its children might survive it.
    for pid in (*descendants(process.pid), process.pid):
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    process.wait(_TIMEOUT)


def _stop_runner(
  control: socket.socket, process: subprocess.Popen[bytes]
) -> None:
  """Makes the runner kill its program and exit, without a pid namespace."""
  with contextlib.suppress(OSError):
    control.shutdown(socket.SHUT_RDWR)
  try:
    process.wait(2.0)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(_TIMEOUT)
