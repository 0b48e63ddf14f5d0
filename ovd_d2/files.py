"""Files that are either whole or absent, and fingerprints of what is in them."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TEMPORARY_SUFFIX = ".tmp"


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; it becomes `path` when the block ends without error.

    The content is flushed to the disk before the rename and the folder after it, so neither a
    crash nor a power cut leaves a half-written `path`. On an error the temporary file is removed
    and an older `path` stays as it was. Missing parent folders are created. The yielded file
    exists and is empty: open it for writing or let a library overwrite it.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _reserve_temporary(target)
    try:
        yield temporary
        _flush_file(temporary)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(target)  # the error of a full disk names no file
        raise
    flush_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder beside `path`, which becomes `path` when the block ends without error.

    On an error it is removed with what is in it.

    Raises:
        FileExistsError: there is something at `path` that is no empty folder.
    """
    target = Path(path)
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise FileExistsError(f"{target} is there already: name another folder, or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(
        f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    )
    temporary.mkdir()
    try:
        yield temporary
        for file in filter(Path.is_file, temporary.rglob("*")):
            _flush_file(file)
        temporary.replace(target)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError) and error.errno and error.filename is None:
            error.filename = str(target)
        raise
    flush_folder(target.parent)


def atomic_write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` as indented UTF-8 JSON, whole or not at all. NaN and infinity are refused."""
    text = json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        # A file name that is no UTF-8 has lone surrogates, whose escape is JSON's own.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def read_bounded(path: str | os.PathLike[str], largest: int) -> bytes:
    """Return a file's bytes if it is a plain file of at most `largest`; nothing else is opened.

    Raises:
        OSError: it is missing or not readable.
        ValueError: it is larger, or a pipe or device, which might never end.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a plain file")
    if status.st_size > largest:
        raise ValueError(f"it has {status.st_size} bytes, expected at most {largest}")
    return Path(path).read_bytes()


def read_text(path: str | os.PathLike[str]) -> str:
    """The content of a text file in UTF-8; a byte order mark, as Windows writes, is left out.

    Raises:
        ValueError: another encoding; the message names the file.
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at position {error.start}"
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            found += "; it is UTF-16, as PowerShell's > writes"
        raise ValueError(f"{path} is not UTF-8 text ({found}): save it as UTF-8") from error


def sha256_file(path: str | os.PathLike[str], chunk_size: int = 1 << 20) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal characters."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while chunk := stream.read(chunk_size):
            digest.update(chunk)
    return digest.hexdigest()


def fingerprint_json(obj: Any) -> str:
    """Return the first 16 hexadecimal characters of the SHA-256 of `obj` as canonical JSON.

    Canonical: sorted keys, no blanks, ASCII only, so that equal values give equal fingerprints
    whatever the order in which a dict was filled. Tuples count as lists.
    """
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def flush_folder(folder: str | os.PathLike[str]) -> None:
    """Make renames and deletions inside `folder` survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (PermissionError, IsADirectoryError):  # Windows cannot open a folder
        return
    try:
        os.fsync(descriptor)
    except OSError:
        # Some network file systems refuse fsync on a folder; the rename itself is still atomic.
        return
    finally:
        os.close(descriptor)


def free_bytes(folder: str | os.PathLike[str]) -> int:
    """Room on the disk that will hold `folder`, which need not exist yet."""
    path = Path(folder).resolve()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def readable_bytes(count: float) -> str:
    """Bytes for people: "28.7 GiB"."""
    for unit in ("bytes", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


def _reserve_temporary(target: Path) -> Path:
    """Create an empty file of a unique name beside `target`, its permissions set by the umask."""
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"
    temporary = target.with_name(f".{target.name}.{unique}{TEMPORARY_SUFFIX}")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _flush_file(path: Path) -> None:
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())
