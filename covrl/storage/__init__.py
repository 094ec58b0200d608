# SPDX-License-Identifier: Apache-2.0
"""Files on local disks and in buckets, and append-only logs."""

from covrl.storage.paths import absolute as absolute
from covrl.storage.paths import digests as digests
from covrl.storage.paths import is_bucket as is_bucket
from covrl.storage.paths import local as local
from covrl.storage.paths import opened as opened
from covrl.storage.paths import path_of as path_of
from covrl.storage.paths import read_into as read_into
from covrl.storage.paths import remove as remove
from covrl.storage.paths import scratch as scratch
from covrl.storage.paths import size_of as size_of
from covrl.storage.paths import upload as upload
from covrl.storage.paths import write_atomically as write_atomically
from covrl.storage.paths import write_new as write_new
