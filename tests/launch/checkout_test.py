# SPDX-License-Identifier: Apache-2.0
"""The commit that is copied to TPU hosts holds the config."""

import io
import os

import pytest

from launch.__main__ import main
from launch.shell import Shell

TPU = ['tpu', '--name=a', '--type=v5e-8', '--project=p', '--zone=z']


def dry_run(config, *arguments, launcher=TPU):
  """Returns the exit status and the output of a dry run."""
  output = io.StringIO()
  run = ['--', f'--config={config}', '--workdir=gs://b/r', *arguments]
  shell = Shell(dry_run=True, output=output)
  return main([*launcher, '--dry-run', *run], shell), output.getvalue()


def error_of_launch(capsys, *arguments, **options):
  """Returns the error of a dry run that is refused."""
  assert dry_run(*arguments, **options) == (2, '')
  error = capsys.readouterr().err
  assert error.count('\n') == 1
  return error


def test_committed_config_is_launched(clone):
  for config in ('configs/c.py', 'configs/c.py:kl_cov', 'countdown:kl_cov'):
    status, printed = dry_run(config)
    assert status == 0
    assert f'--config={config} ' in printed
    assert 'not committed' not in printed


@pytest.mark.parametrize('path', ['{root}/configs/c.py:kl_cov', 'c.py:kl_cov'])
def test_path_is_relative_to_the_checkout_on_the_hosts(
  clone, monkeypatch, path
):
  monkeypatch.chdir(clone / 'configs')
  for arguments in (['--config', path.format(root=clone)], []):
    status, printed = dry_run(path.format(root=clone), *arguments)
    assert status == 0
    assert '--config=configs/c.py:kl_cov ' in printed


def test_absent_config_is_refused(clone, capsys):
  assert "got 'configs/d.py', which does not exist" in error_of_launch(
    capsys, 'configs/d.py'
  )
  assert 'a recipe that covrl ships' in error_of_launch(
    capsys, 'nowhere:kl_cov'
  )
  for config in ('configs/c.py:no', 'countdown:no'):
    error = error_of_launch(capsys, config)
    assert '--config must name a recipe in ' in error
    assert "got 'no'" in error


def test_recipes_that_a_file_imports_or_assigns_are_launched(clone, git):
  file = clone / 'configs' / 'own.py'
  file.write_text('from c import kl_cov as a\nb = a\nif b:\n  c = a\n')
  git(clone, 'add', '.')
  git(clone, 'commit', '--quiet', '--message=Own')
  for name in 'abc':
    assert dry_run(f'configs/own.py:{name}')[0] == 0


def test_config_without_a_value_is_refused(clone, capsys):
  run = ['--dry-run', '--', '--config', '--workdir=gs://b/r']
  assert main([*TPU, *run], Shell(dry_run=True, output=io.StringIO())) == 2
  assert '--config=… of `covrl train`' in capsys.readouterr().err


def test_config_outside_of_the_checkout_is_refused(clone, capsys, tmp_path):
  outside_file = tmp_path / 'other.py'
  outside_file.write_text('def kl_cov():\n  ...\n')
  error = error_of_launch(capsys, outside_file)
  assert f'must be a file of {clone}, whose commit HEAD is copied' in error
  assert str(outside_file) in error
  (clone / 'configs' / 'link.py').symlink_to(outside_file)
  assert 'must be a file of' in error_of_launch(capsys, 'configs/link.py')


@pytest.mark.parametrize(
  ('file', 'config', 'text'),
  [
    ('configs/new.py', 'configs/new.py', 'def kl_cov():\n  ...\n'),
    ('configs/c.py', 'configs/c.py', 'def kl_cov():\n  ...\n'),
    ('configs/shared.py', 'configs/c.py', 'def kl_cov():\n  return 1\n'),
    ('configs/countdown.py', 'countdown:kl_cov', '# changed\n'),
  ],
)
def test_config_that_is_not_committed_is_refused(
  clone, capsys, git, file, config, text
):
  (clone / file).write_text(text)
  error = error_of_launch(capsys, config)
  assert 'must be committed' in error
  assert f'got {file}, which is not committed or has changed since' in error
  git(clone, 'add', '.')
  assert 'must be committed' in error_of_launch(capsys, config)
  git(clone, 'commit', '--quiet', '--message=Second')
  assert dry_run(config)[0] == 0


def test_other_uncommitted_changes_are_named(clone):
  for index in range(7):
    (clone / f'new_{index}.txt').touch()
  status, printed = dry_run('configs/c.py')
  assert status == 0
  assert printed.startswith(
    'not committed, so not on the hosts: new_0.txt, new_1.txt, new_2.txt, '
    'new_3.txt, new_4.txt and 2 more\n'
  )


def test_data_that_only_this_machine_has_is_refused(clone, capsys, git):
  (clone / 'train.jsonl').touch()
  override = '--config.data.train=gs://b/a.jsonl=2,train.jsonl=1'
  error = error_of_launch(capsys, 'configs/c.py', override)
  assert '--config.data.train must name files that the hosts have' in error
  assert "got 'train.jsonl'" in error
  git(clone, 'add', '.')
  git(clone, 'commit', '--quiet', '--message=Data')
  for text in (override, '--config.data.system=train', '--config.data.system='):
    assert dry_run('configs/c.py', text)[0] == 0


def test_directory_without_git_is_refused(clone, capsys, monkeypatch):
  os.rename(clone / '.git', clone / 'git')
  # As for a checkout within that of another project.
  monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(clone.parent))
  assert 'must be a git checkout' in error_of_launch(capsys, 'configs/c.py')


@pytest.mark.parametrize(
  'launcher',
  [
    ['slurm', '--name=a', '--nodes=1', '--gpus-per-node=8'],
    ['local', '--name=a', '--processes=2'],
  ],
)
def test_other_launchers_refuse_a_config_that_does_not_exist(
  clone, capsys, launcher
):
  error = error_of_launch(capsys, 'configs/d.py:kl_cov', launcher=launcher)
  assert "must name a Python file, got 'configs/d.py:kl_cov'" in error
  assert dry_run('configs/c.py:kl_cov', launcher=launcher)[0] == 0


def test_data_is_named_and_committed_as_the_hosts_read_it(
  clone, capsys, git, monkeypatch
):
  (clone / 'sub').mkdir()
  for folder in (clone, clone / 'sub'):
    (folder / 'a.jsonl').write_text('{}')
    (folder / 'my_rewards.py').write_text('def score(x, y): return 0')
  git(clone, 'add', '.')
  git(clone, 'commit', '--quiet', '--message=Data')
  data = '--config.data.train=a.jsonl'
  function = '--config.rewards.function=my_rewards:score'
  assert dry_run('configs/c.py', data, function)[0] == 0
  # The hosts train in the root, where there is another file of this name.
  monkeypatch.chdir(clone / 'sub')
  error = error_of_launch(capsys, '../configs/c.py', data)
  assert f'must name files from {clone}, where the hosts train' in error
  monkeypatch.chdir(clone)
  (clone / 'a.jsonl').write_text('{"a": 1}')
  error = error_of_launch(capsys, 'configs/c.py', data)
  assert "got 'a.jsonl', which has changed since" in error
  (clone / 'my_rewards.py').write_text('def score(x, y): return 1')
  error = error_of_launch(capsys, 'configs/c.py', function)
  assert 'got my_rewards.py, which is not committed or has changed' in error
