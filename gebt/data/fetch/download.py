"""Verified downloads: https with a checked certificate, complete or not at all, and resumed."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib import request
from urllib.error import HTTPError

from tqdm import tqdm

from gebt.data.manifest import FileInfo
from gebt.graph.graph import GraphError

CHUNK = 1 << 16
TIMEOUT_SECONDS = 30.0


def download_file(file: FileInfo, folder: Path, ssl_context: ssl.SSLContext | None = None) -> Path:
    """Downloads a file of the manifest; it appears complete and verified, or not at all.

    A download that was cut short is resumed (`fetch`).

    Args:
        file: address, size and sha256.
        folder: where it goes.
        ssl_context: replaces the system's default trust (`ssl.create_default_context()`).

    Returns:
        Path of the file.

    Raises:
        GraphError: for an address or a redirect that is not https, an untrusted certificate, a network failure, or
            bytes that are not those of the manifest.
    """
    target, part = folder / file.name, folder / f".{file.name}.part"
    with network_errors(file.url, f"{file.bytes} bytes into {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        with file_lock(folder / f".{file.name}.lock"):
            fetch(file.url, part, file.bytes, ssl_context)
            digest, size = sha256_of(part), part.stat().st_size
            if digest != file.sha256:
                discard(part)
                got = f"{size} bytes, sha256 {digest}"
                raise GraphError(
                    f"download of {file.url} (got {got}), expected {file.bytes} bytes, sha256 {file.sha256}"
                )
            part.replace(target)
            discard(part)
    return target


def fetch(url: str, part: Path, most: int, ssl_context: ssl.SSLContext | None = None) -> None:
    """Downloads the bytes at an address, from where an earlier call was cut short.

    A file next to the part records its size and ETag (or date); where the server's file has changed, or the server does
    not honor ranges, the download starts anew.

    Args:
        url: https address.
        part: file for the bytes.
        most: most bytes.
        ssl_context: replaces the system's default trust.

    Raises:
        GraphError: when the answer ends early, which leaves the part for the next call, or is too long.
        OSError: of the network, which leaves the part too; also HTTPException.
    """
    context = ssl_context or ssl.create_default_context()
    mark = _Mark.of(part, url)
    have = part.stat().st_size if mark is not None and part.is_file() else 0
    if mark is not None and have == mark.size:
        return
    response, start = _answer(url, have, mark, context)
    with response:
        if not start:
            discard(part)
            mark = _Mark.of_answer(url, response)
        if mark is not None:
            _check_size(mark, most, part)
            mark.write(part)
        try:
            with part.open("r+b" if start else "wb") as stream:
                received = _received(response, stream, start, mark.size if mark else None, most)
        except BaseException:
            if mark is None:  # the next call could not know what this was part of
                discard(part)
            raise
    if mark is not None and received < mark.size:
        raise GraphError(f"download of {url} (got {received} bytes), expected {mark.size} bytes; again goes on there")
    if received > most:
        discard(part)
        raise GraphError(f"download of {url} (got {received} bytes), expected {most} bytes at most")


def discard(part: Path) -> None:
    """Removes what `fetch` has written.

    Args:
        part: as in `fetch`.
    """
    for path in (part, _Mark.path(part)):
        path.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """The sha256 of a file.

    Args:
        path: the file.

    Returns:
        Hexadecimal text.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     sha256_of(Path(file.name))[:8]  # of no bytes
        'e3b0c442'
    """
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def file_lock(lock: Path) -> Iterator[None]:
    """Waits until no other process is inside with the same file; the file exists only while one is.

    Args:
        lock: path of the file.

    Yields:
        Nothing.
    """
    while True:
        with lock.open("ab") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            try:
                locked = os.path.samestat(os.fstat(stream.fileno()), lock.stat())
            except FileNotFoundError:
                locked = False
            if locked:  # else whoever was inside has removed it, and a third may have locked the next of this name
                try:
                    yield
                finally:
                    lock.unlink()
                return


@contextmanager
def network_errors(url: str, expected: str) -> Iterator[None]:
    """Turns what networks and disks raise into a `GraphError`.

    Args:
        url: address, for the message.
        expected: what was expected, for the message.

    Yields:
        Nothing.

    Raises:
        GraphError: for OSError and HTTPException.
    """
    try:
        yield
    except (OSError, HTTPException) as error:
        raise GraphError(f"download of {url} (got: {error}), expected {expected}") from error


@dataclass(frozen=True)
class _Mark:
    """What a part belongs to: address, version as the server calls it, and size of the complete file."""

    url: str
    version: str
    size: int

    @staticmethod
    def path(part: Path) -> Path:
        return part.with_name(f"{part.name}.json")

    @classmethod
    def of(cls, part: Path, url: str) -> _Mark | None:
        """The mark of the part from this address; None where there is no sound one."""
        try:
            mark = cls(**json.loads(cls.path(part).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None
        return mark if mark.url == url and isinstance(mark.size, int) else None

    @classmethod
    def of_answer(cls, url: str, response: HTTPResponse) -> _Mark | None:
        """The mark of the complete file in an answer, where this says how long it is."""
        size = response.headers.get("Content-Length", "")
        return cls(url, _version(response), int(size)) if size.isdecimal() else None

    def write(self, part: Path) -> None:
        self.path(part).write_text(json.dumps(asdict(self)), encoding="utf-8")


def _version(response: HTTPResponse) -> str:
    return response.headers.get("ETag") or response.headers.get("Last-Modified") or ""


def _answer(url: str, have: int, mark: _Mark | None, context: ssl.SSLContext) -> tuple[HTTPResponse, int]:
    """The server's answer, and at which byte of the file it begins: at `have` where that is granted, else at 0."""
    opener = _opener(context)
    if have and mark is not None:
        try:
            response = opener.open(
                request.Request(_https(url), headers={"Range": f"bytes={have}-"}), timeout=TIMEOUT_SECONDS
            )
        except HTTPError as error:
            error.close()
            if error.code != 416:  # a range beyond the end: the file is a shorter one now
                raise
        else:
            rest = f"bytes {have}-{mark.size - 1}/{mark.size}"
            if response.status == 206 and (response.headers["Content-Range"], _version(response)) == (
                rest,
                mark.version,
            ):
                return response, have
            if response.status == 200:
                return response, 0
            response.close()
    return opener.open(_https(url), timeout=TIMEOUT_SECONDS), 0


def _check_size(mark: _Mark, most: int, part: Path) -> None:
    if mark.size > most:
        raise GraphError(f"download of {mark.url} (got {mark.size} bytes), expected {most} bytes at most")
    free = shutil.disk_usage(part.parent).free
    if mark.size > free:
        raise GraphError(f"download of {mark.url} (got {mark.size} bytes), expected at most the {free} that are free")


def _received(response: HTTPResponse, stream: IO[bytes], start: int, size: int | None, most: int) -> int:
    """The bytes of the file after the body, which is written; never more than one beyond what is allowed."""
    stream.seek(start)
    stream.truncate()
    received, limit = start, most + 1
    with tqdm(total=size, initial=start, desc=Path(stream.name).name, unit="B", unit_scale=True, disable=None) as bar:
        while received < limit and (chunk := response.read(min(CHUNK, limit - received))):
            stream.write(chunk)
            received += len(chunk)
            bar.update(len(chunk))
    stream.flush()
    os.fsync(stream.fileno())
    return received


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
