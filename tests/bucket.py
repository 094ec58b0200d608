# SPDX-License-Identifier: Apache-2.0
"""An emulated bucket: the used part of Cloud Storage's JSON interface.

Objects are replaced whole, cannot be appended to, and have generations and
checksums, as in Cloud Storage. Both gcsfs and TensorStore can use it.
"""

import base64
import contextlib
import http.server
import itertools
import json
import re
import struct
import sys
import threading
import time
import urllib.parse

import google_crc32c

NAME = 'bucket'
# Seconds by which writes of delayed objects are late.
DELAY = 0.7


class Bucket:
  """Content of an emulated bucket.

  Attributes:
    objects: content and generation by name.
    failing_requests: number of requests that are still to fail.
    failure: status and message with which every request is to fail, if any.
    refused: pattern of the names of objects that must not be written.
    delayed: pattern of the names of objects that are written late.
    unlisted: pattern of the prefixes that must not be listed.
    uploads: name and content so far of uploads in parts, by number.
  """

  def __init__(self):
    self.objects = {}
    self.failing_requests = 0
    self.failure: tuple[int, str] | None = None
    self.refused = '(?!)'
    self.delayed = '(?!)'
    self.unlisted = '(?!)'
    self.lock = threading.RLock()
    self.uploads = {}
    self._numbers = itertools.count(1)

  def put(self, name, content):
    """Stores an object under a new generation."""
    with self.lock:
      self.objects[name] = content, next(self._numbers)

  def text(self, name):
    """Returns the content of an object as text."""
    return self.objects[name][0].decode()

  def names(self, prefix=''):
    """Returns the sorted names of objects with a prefix."""
    return sorted(name for name in self.objects if name.startswith(prefix))

  def unused_number(self):
    """Returns a number that was not used before."""
    return next(self._numbers)


class Handler(http.server.BaseHTTPRequestHandler):
  """Answers requests of gcsfs and TensorStore."""

  protocol_version = 'HTTP/1.1'
  # A body that follows its headers would wait 40 ms for their acknowledgement.
  disable_nagle_algorithm = True
  bucket: Bucket

  def do_GET(self):
    path, query = self._request()
    if re.fullmatch(rf'/storage/v1/b/{NAME}/o/?', path):
      return self._list(query)
    if path == f'/storage/v1/b/{NAME}':
      return self._answer({'kind': 'storage#bucket', 'name': NAME})
    name = self._object_name(path)
    return self._read(name, query)

  def do_POST(self):
    path, query = self._request()
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    copy_match = re.fullmatch(
      rf'/storage/v1/b/{NAME}/o/([^/]+)/(?:rewriteTo|copyTo)/b/{NAME}/o/([^/]+)',
      path,
    )
    if copy_match:
      source, target = map(urllib.parse.unquote, copy_match.groups())
      return self._copy(source, target)
    move_match = re.fullmatch(
      rf'/storage/v1/b/{NAME}/o/([^/]+)/moveTo/o/([^/]+)', path
    )
    if move_match:
      source, target = map(urllib.parse.unquote, move_match.groups())
      return self._copy(source, target, is_move=True)
    if 'upload_id' in query:
      return self._append_to_upload(query, body)
    if path != f'/upload/storage/v1/b/{NAME}/o':
      return self._not_found(path)
    upload_type = query['uploadType']
    if upload_type == 'resumable':
      upload_id = str(self.bucket.unused_number())
      name = json.loads(body)['name'] if body else query['name']
      self.bucket.uploads[upload_id] = name, bytearray()
      host = self.headers['Host']
      location = (
        f'http://{host}/upload/storage/v1/b/{NAME}/o?upload_id={upload_id}'
      )
      return self._answer({}, {'Location': location})
    name = query.get('name')
    if upload_type == 'multipart':
      name, body = self._parse_multipart(body)
    return self._write(name, body, query)

  def do_PUT(self):
    _, query = self._request()
    body = self.rfile.read(int(self.headers.get('Content-Length', 0)))
    return self._append_to_upload(query, body)

  def _append_to_upload(self, query, body):
    """Appends a part to a resumable upload."""
    name, content = self.bucket.uploads[query['upload_id']]
    content += body
    if self.headers.get('Content-Range', '').endswith('/*'):
      return self._answer({}, {'Range': f'bytes=0-{len(content) - 1}'}, 308)
    return self._write(name, bytes(content), query)

  def do_DELETE(self):
    path, query = self._request()
    name = self._object_name(path)
    with self.bucket.lock:
      if self._condition_fails(name, query):
        return None
      if self.bucket.objects.pop(name, None) is None:
        return self._not_found(name)
    self.send_response(204)
    self.send_header('Content-Length', '0')
    return self.end_headers()

  def log_message(self, format, *arguments):
    pass

  def _request(self):
    """Returns the path and query of a request, or fails it if it is to fail."""
    if self.bucket.failing_requests > 0:
      self.bucket.failing_requests -= 1
      self.close_connection = True
      raise ConnectionAbortedError
    if self.bucket.failure is not None:
      status, message = self.bucket.failure
      self.close_connection = True
      error = {'code': status, 'message': message}
      self._answer({'error': error}, {}, status)
      raise ConnectionAbortedError
    url = urllib.parse.urlsplit(self.path)
    return url.path, dict(urllib.parse.parse_qsl(url.query))

  def _object_name(self, path):
    """Returns the name of the object in a path; empty if absent."""
    match = re.fullmatch(rf'(?:/download)?/storage/v1/b/{NAME}/o/(.+)', path)
    return urllib.parse.unquote(match[1]) if match else ''

  def _parse_multipart(self, body):
    """Returns the name and content of a multipart upload."""
    boundary = re.search(
      r'boundary=[\'"]?([^\'";]+)', self.headers['Content-Type']
    )
    assert boundary is not None
    _, metadata, content, _ = body.split(b'--' + boundary[1].encode())
    name = json.loads(
      metadata.split(
        b'\n\n' if b'\r\n\r\n' not in metadata else b'\r\n\r\n', 1
      )[1]
    )['name']
    separator = b'\r\n\r\n' if b'\r\n\r\n' in content[:200] else b'\n\n'
    content = content.split(separator, 1)[1]
    end = b'\r\n' if content.endswith(b'\r\n') else b'\n'
    return name, content.removesuffix(end)

  def _list(self, query):
    """Answers with the objects that have a prefix."""
    prefix, delimiter = query.get('prefix', ''), query.get('delimiter')
    items, prefixes = [], set()
    if re.search(self.bucket.unlisted, prefix):
      error = {'code': 403, 'message': 'rate limit exceeded'}
      return self._answer({'error': error}, {}, 403)
    with self.bucket.lock:
      for name in self.bucket.names(prefix):
        if not query.get('startOffset', '') <= name:
          continue
        if 'endOffset' in query and name >= query['endOffset']:
          continue
        relative_name = name[len(prefix) :]
        if delimiter and delimiter in relative_name:
          prefixes.add(
            prefix + relative_name.partition(delimiter)[0] + delimiter
          )
        else:
          items.append(self._metadata(name))
    return self._answer({'items': items, 'prefixes': sorted(prefixes)})

  def _metadata(self, name):
    """Returns the description of an object."""
    content, generation = self.bucket.objects[name]
    checksum = struct.pack('>I', google_crc32c.value(content))
    return {
      'kind': 'storage#object',
      'name': name,
      'bucket': NAME,
      'size': str(len(content)),
      'generation': str(generation),
      'metageneration': '1',
      'crc32c': base64.b64encode(checksum).decode(),
      'updated': '2026-01-01T00:00:00.000Z',
      'timeCreated': '2026-01-01T00:00:00.000Z',
    }

  def _read(self, name, query):
    """Answers with an object, a range of its bytes, or its metadata."""
    with self.bucket.lock:
      if name not in self.bucket.objects:
        return self._not_found(name)
      if self._condition_fails(name, query):
        return None
      content, generation = self.bucket.objects[name]
      if query.get('alt') != 'media':
        return self._answer(self._metadata(name))
    byte_range = re.fullmatch(
      r'bytes=(\d*)-(\d*)', self.headers.get('Range') or ''
    )
    status, body = 200, content
    headers = {'x-goog-generation': str(generation)}
    if byte_range:
      first = (
        int(byte_range[1])
        if byte_range[1]
        else max(len(content) - int(byte_range[2]), 0)
      )
      last = (
        int(byte_range[2])
        if byte_range[1] and byte_range[2]
        else len(content) - 1
      )
      last = min(last, len(content) - 1)
      if first >= len(content):
        return self._answer({}, {}, 416)
      status, body = 206, content[first : last + 1]
      headers['Content-Range'] = f'bytes {first}-{last}/{len(content)}'
    self.send_response(status)
    for key, value in headers.items():
      self.send_header(key, value)
    self.send_header('Content-Length', str(len(body)))
    self.end_headers()
    return self.wfile.write(body)

  def _write(self, name, content, query):
    """Stores an object, or answers with an error."""
    if re.search(self.bucket.delayed, name):
      time.sleep(DELAY)
    with self.bucket.lock:
      if re.search(self.bucket.refused, name):
        error = {'code': 403, 'message': f'{name} must not be written'}
        return self._answer({'error': error}, {}, 403)
      if self._condition_fails(name, query):
        return None
      self.bucket.put(name, content)
      return self._answer(self._metadata(name))

  def _copy(self, source, target, *, is_move=False):
    """Copies an object, or moves it; the answer comes after both."""
    with self.bucket.lock:
      if source not in self.bucket.objects:
        return self._not_found(source)
      self.bucket.put(target, self.bucket.objects[source][0])
      if is_move:
        del self.bucket.objects[source]
      metadata = self._metadata(target)
    return self._answer({'done': True, 'resource': metadata, **metadata})

  def _condition_fails(self, name, query):
    """Answers a request whose condition on the generation does not hold.

    Returns:
      Whether the request has been answered.
    """
    _, generation = self.bucket.objects.get(name, (b'', 0))
    required = query.get('ifGenerationMatch')
    if required is not None and int(required) != generation:
      self._answer({'error': {'code': 412, 'message': 'condition'}}, {}, 412)
      return True
    excluded = query.get('ifGenerationNotMatch')
    if excluded is not None and int(excluded) == generation:
      self.send_response(304)
      self.send_header('Content-Length', '0')
      self.end_headers()
      return True
    return False

  def _not_found(self, name):
    """Answers with status 404."""
    error = {'code': 404, 'message': f'No such object: {name}'}
    return self._answer({'error': error}, {}, 404)

  def _answer(self, content, headers=None, status=200):
    """Sends a JSON answer."""
    text = json.dumps(content).encode()
    self.send_response(status)
    for key, value in (headers or {}).items():
      self.send_header(key, value)
    self.send_header('Content-Type', 'application/json')
    self.send_header('Content-Length', str(len(text)))
    self.end_headers()
    self.wfile.write(text)


class Server(http.server.ThreadingHTTPServer):
  """HTTP server that ignores connections closed by clients."""

  daemon_threads = True

  def handle_error(self, request, client_address):
    # gcsfs sends a request twice and closes one connection after the first reply.
    if not isinstance(sys.exception(), ConnectionError):
      super().handle_error(request, client_address)


@contextlib.contextmanager
def serve_bucket():
  """Serves a bucket; yields it and the environment variables of its clients."""
  bucket = Bucket()
  handler = type('BucketHandler', (Handler,), {'bucket': bucket})
  server = Server(('127.0.0.1', 0), handler)
  thread = threading.Thread(target=server.serve_forever, daemon=True)
  thread.start()
  url = f'http://127.0.0.1:{server.server_port}'
  try:
    yield (
      bucket,
      {
        'STORAGE_EMULATOR_HOST': url,
        'TENSORSTORE_GCS_HTTP_URL': url,
        'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
        'GOOGLE_CLOUD_PROJECT': 'project',
        'NO_GCE_CHECK': 'true',
        'FSSPEC_GCS_TOKEN': 'anon',
        # Otherwise gcsfs requests the kind of the bucket from Google.
        'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
      },
    )
  finally:
    server.shutdown()
    thread.join()
    server.server_close()
