"""Folders downloaded as one zip file over https: unpacked safely, completely or not at all, with sha256 sums."""

from __future__ import annotations

import errno
import shutil
import ssl
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from gebt.data.fetch.download import discard, fetch, file_lock, network_errors, sha256_of
from gebt.data.readers.reading import UnsafeFileError, reading
from gebt.graph.graph import GraphError

MOST_BYTES = 1 << 37
MOST_UNPACKED = 1 << 38
MOST_MEMBERS = 100_000
# Deflate makes a thousandth of zeros, and of files that are compressed already nothing less.
MOST_RATIO = 100
# Below this a high ratio does no harm.
HARMLESS = 1 << 26
BLOCK = 1 << 20
SUMS = "SHA256SUMS"


def fetch_folder(url: str, folder: Path, ssl_context: ssl.SSLContext | None = None, *, most: int = MOST_BYTES) -> Path:
    """Downloads a zip file and makes a folder of its content (`unpack`).

    A download that was cut short is resumed at the next call. Next to the files lies `SHA256SUMS`, which `check_sums`
    reads, and the zip's own sum under its name.

    Args:
        url: https address of the zip file.
        folder: the new folder.
        ssl_context: replaces the system's default trust.
        most: most bytes of the zip file.

    Returns:
        The folder.

    Raises:
        GraphError: as `download_file` and `unpack`.
    """
    zipped = folder.with_name(f".{folder.name}.zip")
    with network_errors(url, f"its zip file unpacked into {folder}"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(folder.with_name(f".{folder.name}.lock")):
            if is_there(folder):  # another process has just downloaded it
                return folder
            fetch(url, zipped, most, ssl_context)
            try:
                unpack(zipped, folder, PurePosixPath(url).name)
            except GraphError:
                discard(zipped)
                raise
            discard(zipped)
    return folder


def is_there(folder: Path) -> bool:
    """Whether a folder is there with something in it.

    Args:
        folder: the folder.

    Returns:
        True where it is.
    """
    return folder.is_dir() and any(folder.iterdir())


def unpack(zipped: Path, folder: Path, name: str) -> None:
    """Makes a new folder of a zip file, complete or not at all; one folder around all its files is taken off.

    Args:
        zipped: the zip file.
        folder: the new folder.
        name: what the zip file was called, for its sum.

    Raises:
        UnsafeFileError: for a member that is a link, lies outside, is there twice, or for more than `MOST_UNPACKED`
            bytes or `MOST_RATIO` times those of the zip.
        GraphError: for a zip file that is broken.
    """
    fresh = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(fresh, ignore_errors=True)  # of a process that was killed
    try:
        fresh.mkdir(parents=True)
        sums = _unpacked(zipped, fresh)
        tops = list(fresh.iterdir())
        inner = tops[0] if len(tops) == 1 and tops[0].is_dir() else fresh
        lines = [f"{digest}  {path.relative_to(inner).as_posix()}\n" for path, digest in sums.items()]
        (inner / SUMS).write_text("".join(lines), encoding="utf-8")
        (inner / f"{name}.sha256").write_text(f"{sha256_of(zipped)}  {name}\n", encoding="utf-8")
        inner.replace(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def check_sums(folder: Path) -> dict[str, str]:
    """Compares the files of a folder with the sums from its download.

    Args:
        folder: the folder.

    Returns:
        "present", "missing" or "sha256 differs" by file; {} for a folder that was made by hand.
    """
    path = folder / SUMS
    if not path.is_file():
        return {}
    statuses = {}
    with reading(path, "lines of a sha256 and a file's name"):
        for line in path.read_text(encoding="utf-8").splitlines():
            digest, name = line.split("  ", 1)
            at = folder / _inside(name)
            same = at.is_file() and sha256_of(at) == digest
            statuses[name] = "present" if same else "sha256 differs" if at.is_file() else "missing"
    return statuses


def check_unchanged(folder: Path) -> None:
    """Checks that a folder is as it was downloaded.

    Args:
        folder: the folder.

    Raises:
        GraphError: naming the first file that is not what was downloaded.
    """
    for name, status in check_sums(folder).items():
        if status != "present":
            got = f"file {folder / name} (got: {status})"
            raise GraphError(f"{got}, expected what was downloaded; delete {folder} and load again")


def _unpacked(zipped: Path, fresh: Path) -> dict[Path, str]:
    """Each file of the zip, unpacked into `fresh`, and its sha256."""
    sums = {}
    try:
        with zipfile.ZipFile(zipped) as archive:
            for member, place in _members(archive, zipped).items():
                at = fresh / place
                at.parent.mkdir(parents=True, exist_ok=True)
                # A member is never longer than it declares: zipfile stops there, and its CRC is then wrong.
                with archive.open(member) as source, at.open("xb") as target:
                    shutil.copyfileobj(source, target, BLOCK)
                sums[at] = sha256_of(at)
    except GraphError:
        raise
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, LookupError, ValueError, OSError) as error:
        # zipfile raises OSError too where an offset is broken; a full disk is not the zip's fault.
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise
        raise GraphError(f"zip {zipped} (got: {error}), expected a sound one; it was removed, load again") from error
    return sums


def _members(archive: zipfile.ZipFile, zipped: Path) -> dict[zipfile.ZipInfo, PurePosixPath]:
    """The files inside and where they go, after a check of all of them."""
    members = [member for member in archive.infolist() if not member.is_dir()]
    total, packed = sum(member.file_size for member in members), zipped.stat().st_size
    if len(archive.infolist()) > MOST_MEMBERS or not members:
        raise UnsafeFileError(f"zip {zipped} (got {len(members)} files), expected 1 to {MOST_MEMBERS}")
    if total > MOST_UNPACKED or total > max(MOST_RATIO * packed, HARMLESS):
        raise UnsafeFileError(
            f"zip {zipped} (got {total} bytes unpacked from {packed}), expected at most {MOST_UNPACKED} and "
            f"{MOST_RATIO} times as many; nothing was unpacked"
        )
    free = shutil.disk_usage(zipped.parent).free
    if total > free:
        raise OSError(errno.ENOSPC, f"{total} bytes unpacked, more than the {free} that are free")
    places = {member: _inside(member.filename) for member in members}
    for member in members:
        plain = stat.S_IFMT(member.external_attr >> 16) in (0, stat.S_IFREG)
        if not plain or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            got = f"{member.filename!r}, a link or of another packing"
            raise UnsafeFileError(f"zip {zipped} (got {got}), expected plain files, stored or deflated")
    taken = {parent for place in places.values() for parent in place.parents} | {PurePosixPath(SUMS)}
    if len(set(places.values()) - taken) < len(members):
        raise UnsafeFileError(f"zip {zipped} (got two files of one name), expected each once")
    return places


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name or not path.parts:
        raise UnsafeFileError(f"name {name!r} in an archive, expected one inside its folder; nothing was unpacked")
    return path
