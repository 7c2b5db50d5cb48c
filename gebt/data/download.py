"""Downloads that are what they should be: https with a verified certificate, a pinned sha256, all or nothing."""

from __future__ import annotations

import hashlib
import os
import secrets
import ssl
from collections.abc import Iterator
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO
from urllib import request

from tqdm import tqdm

from gebt.data.manifest import FileInfo
from gebt.graph.canonical import GraphError

CHUNK = 1 << 16
TIMEOUT_SECONDS = 30.0


def download_file(file: FileInfo, folder: Path, ssl_context: ssl.SSLContext | None = None) -> Path:
    """Fetches `file` into `folder` and returns its path; it appears there whole and verified, or not at all.

    `ssl_context` replaces the system's default trust (`ssl.create_default_context()`). Raises `GraphError` for
    an address or a redirect that is not https, an untrusted certificate, a network failure, or bytes that are
    not those of the manifest.
    """
    target = folder / file.name
    part = target.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("xb") as stream:
                _fill(stream, file, ssl_context or ssl.create_default_context())
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    except (OSError, HTTPException) as error:
        raise GraphError(f"download of {file.url} (got: {error}), expected {file.bytes} bytes into {folder}") from error
    return target


def sha256_of(path: Path) -> str:
    """The sha256 of a file, as hexadecimal text."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fill(stream: IO[bytes], file: FileInfo, context: ssl.SSLContext) -> None:
    digest, received = hashlib.sha256(), 0
    for chunk in _chunks(file, context):
        digest.update(chunk)
        stream.write(chunk)
        received += len(chunk)
    if digest.hexdigest() != file.sha256:
        got = f"{received} bytes, sha256 {digest.hexdigest()}"
        raise GraphError(f"download of {file.url} (got {got}), expected {file.bytes} bytes, sha256 {file.sha256}")
    stream.flush()
    os.fsync(stream.fileno())


def _chunks(file: FileInfo, context: ssl.SSLContext) -> Iterator[bytes]:
    """The body, never more than one byte beyond what the manifest allows: enough to see that it is too long."""
    left = file.bytes + 1
    with (
        _opener(context).open(_https(file.url), timeout=TIMEOUT_SECONDS) as response,
        tqdm(total=file.bytes, desc=file.name, unit="B", unit_scale=True, disable=None) as bar,
    ):
        while left and (chunk := response.read(min(CHUNK, left))):
            left -= len(chunk)
            bar.update(len(chunk))
            yield chunk


def _https(url: str) -> str:
    if not url.startswith("https://"):
        raise GraphError(f"download address (got {url!r}), expected one that begins with https://")
    return url


def _opener(context: ssl.SSLContext) -> request.OpenerDirector:
    # Built by hand: build_opener() adds the handlers of http, ftp, file and data addresses.
    opener = request.OpenerDirector()
    for handler in (
        request.ProxyHandler(),
        request.HTTPSHandler(context=context),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        request.UnknownHandler(),
        _HttpsRedirects(),
    ):
        opener.add_handler(handler)
    return opener


class _HttpsRedirects(request.HTTPRedirectHandler):
    """Follows a redirect only where it stays on https."""

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> request.Request | None:
        return super().redirect_request(req, fp, code, msg, headers, _https(newurl))
