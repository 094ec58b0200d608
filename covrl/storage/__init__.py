# SPDX-License-Identifier: Apache-2.0
"""Files on local disks and in buckets, and append-only logs."""

from covrl.storage.buckets import create_object as create_object
from covrl.storage.buckets import is_bucket as is_bucket
from covrl.storage.digests import digest_files as digest_files
from covrl.storage.durable import is_temporary as is_temporary
from covrl.storage.durable import make_directories as make_directories
from covrl.storage.durable import sync_directory as sync_directory
from covrl.storage.durable import sync_tree as sync_tree
from covrl.storage.durable import write_all as write_all
from covrl.storage.durable import write_atomically as write_atomically
from covrl.storage.failures import StorageError as StorageError
from covrl.storage.failures import first_storage_error as first_storage_error
from covrl.storage.failures import read_failure_message as read_failure_message
from covrl.storage.failures import reading as reading
from covrl.storage.failures import writing as writing
from covrl.storage.paths import absolute as absolute
from covrl.storage.paths import as_path as as_path
from covrl.storage.paths import entries as entries
from covrl.storage.paths import file_size as file_size
from covrl.storage.paths import file_version as file_version
from covrl.storage.paths import is_directory as is_directory
from covrl.storage.paths import is_link as is_link
from covrl.storage.paths import is_regular_file as is_regular_file
from covrl.storage.paths import local_copy as local_copy
from covrl.storage.paths import move as move
from covrl.storage.paths import numbered_sibling as numbered_sibling
from covrl.storage.paths import open_binary as open_binary
from covrl.storage.paths import read_bytes as read_bytes
from covrl.storage.paths import read_into as read_into
from covrl.storage.paths import remove as remove
from covrl.storage.paths import temporary_directory as temporary_directory
from covrl.storage.paths import upload as upload
