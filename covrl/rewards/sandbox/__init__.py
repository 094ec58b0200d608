# SPDX-License-Identifier: Apache-2.0
"""Judging of untrusted programs by the output that they produce in a sandbox.

A `Judge` finds the program in a response (`extraction`) and chooses a backend
(`backends`: `bubblewrap`, `landlock`, or `Unsandboxed` of `launcher`; `remote` for
a server). For each program a `session` runs the tests (`test_formats`) as jobs in
a `sandbox`, assert suites in two ways (`suites`), and compares results
(`compare_outputs`). `limits` bounds a job's time, memory and output from outside the
sandbox.

Modules with a leading underscore are scripts that run inside sandboxes:
`_job_runner` is process 1, forks a child per job and ends it with all its
`_descendants`; `_program` executes the program; `_suite_runner` executes an assert
suite that `_suite_checks` accepts, with the part of pytest in `_pytest_names`, and
with `_proxies` for the program's objects, which `_object_server` serves over a
`_json_channel`, or with a `_local_program` in its own process; `_landlock` confines a
process without namespaces.
"""

from covrl.rewards.sandbox.backends import JudgeError as JudgeError
from covrl.rewards.sandbox.extraction import find_program as find_program
from covrl.rewards.sandbox.judge import Judge as Judge
from covrl.rewards.sandbox.judge import default_judge as default_judge
from covrl.rewards.sandbox.judge import judge_code as judge_code
