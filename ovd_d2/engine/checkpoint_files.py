"""Checkpoint files of a training: written whole, verified, and found again after any accident.

Order of a save: the checkpoint under a temporary name, flushed; its old digest goes; the checkpoint
takes its name; its new digest is written; `last_checkpoint` names it. Stopped anywhere in between,
each name is a whole checkpoint, and a digest is never that of another content. One without a digest
(that moment, or Detectron2's own) is verified by the checksums that its archive holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ovd_d2.engine.weights import damaged_part, file_fault
from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write, flush_folder, sha256_file

logger = logging.getLogger(__name__)

LAST = "last_checkpoint"  # Detectron2's name for the file that names the last checkpoint
DIGEST_SUFFIX = ".sha256"
# Weights without the rest of a training, which cannot be resumed from them.
AVERAGED, BEST = "model_ema.pth", "model_best.pth"
# What `atomic_write` calls the temporary files of the above; the number is the process.
_LEFTOVER = re.compile(r"\.(?:.+\.pth(?:\.sha256)?|last_checkpoint)\.(\d+)-[0-9a-f]{8}\.tmp")
_PERIODIC = "model_"  # what the checkpoints of Detectron2's PeriodicCheckpointer begin with


class _HashingWriter:
    """Passes on what is written, and takes its digest on the way."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        try:
            return self._stream.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._stream.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def write_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Writes `content` and, beside it, its SHA-256 (`sha256sum -c` reads that file).

    An error leaves an older `path` as it was.
    """
    digest_file = digest_path(path)
    with atomic_write(path) as temporary:
        with temporary.open("wb") as stream:
            writer = _HashingWriter(stream)
            try:
                torch.save(content, writer)  # type: ignore[arg-type] # it asks for write and flush
            except RuntimeError as error:  # of a full disk torch says "unexpected pos"
                raise writer.error or error from error
        digest_file.unlink(missing_ok=True)
        flush_folder(path.parent)
    with atomic_write(digest_file) as temporary:
        temporary.write_text(f"{writer.hexdigest()}  {path.name}\n")


def write_last(folder: Path, name: str) -> None:
    """Names the last checkpoint of a folder."""
    with atomic_write(folder / LAST) as temporary:
        temporary.write_text(name)


def digest_path(checkpoint: Path) -> Path:
    """Where the digest of a checkpoint is."""
    return checkpoint.with_name(checkpoint.name + DIGEST_SUFFIX)


def remove_leftovers(folder: Path) -> None:
    """Deletes temporary files of saves that were killed, and digests whose checkpoint is gone."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        found = _LEFTOVER.fullmatch(path.name)
        if (found and not _is_running(int(found[1]))) or _is_orphan(path):
            logger.info("Removing %s, which a killed run or a deleted checkpoint left", path)
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    """Whether another process of this number is there: it may be in the middle of a save."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's; a number of another system
    return True


def _is_orphan(path: Path) -> bool:
    is_digest = path.name.endswith(".pth" + DIGEST_SUFFIX)
    return is_digest and not path.with_name(path.name.removesuffix(DIGEST_SUFFIX)).exists()


def checkpoint_fault(path: Path) -> str:
    """One sentence on why a checkpoint is not what was saved; "" where it is. Reads all of it."""
    if not path.is_file():
        return f"{path} is missing"
    if fault := file_fault(path):
        return fault
    if expected := _recorded_digest(path):
        found = sha256_file(path)
        if found == expected:
            return ""
        return f"{path} is damaged: its SHA-256 is {found[:12]}..., saved was {expected[:12]}..."
    return _archive_fault(path)


def _recorded_digest(path: Path) -> str:
    """Lower-case hexadecimal; "" where the digest file is missing or itself damaged."""
    recorded = digest_path(path)
    text = recorded.read_text(errors="replace") if recorded.is_file() else ""
    found = re.match(r"[0-9a-f]{64}\b", text)
    return found[0] if found else ""


def _archive_fault(path: Path) -> str:
    try:
        if zipfile.is_zipfile(path):
            damaged = damaged_part(path)
            return f"{path} is damaged: the checksum of {damaged} is wrong" if damaged else ""
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 (any instruction of a damaged file can fail)
        return f"{path} cannot be read ({type(error).__name__})"
    return ""


def find_last_good(folder: Path) -> Path | None:
    """The checkpoint to resume from; None where none has been saved.

    It is the one that `last_checkpoint` names. If that is damaged, cut short or missing, it is the
    good one of the highest iteration, and a warning names both.

    Raises:
        SetupError: there are checkpoints, none of them good: all are listed.
    """
    named, fault = _named_last(folder)
    if named is not None and not fault:
        return named
    others = [path for path in _by_iteration(folder) if path != named]
    if not fault and not others:
        return None
    faults = [fault or f"{folder / LAST} is missing"]
    for path in others:
        other_fault = checkpoint_fault(path)
        if not other_fault:
            logger.warning("%s. Going on from %s, the last good one", faults[0], path)
            return path
        faults.append(other_fault)
    raise SetupError(
        [
            f"--resume: no checkpoint in {folder} is good: {'; '.join(faults)}. Bring one back, or "
            "start again without --resume"
        ]
    )


def _named_last(folder: Path) -> tuple[Path | None, str]:
    """What `last_checkpoint` names and what is wrong with it; (None, "") where there is none."""
    last = folder / LAST
    if not last.is_file():
        return None, ""
    name = last.read_bytes().decode(errors="replace").strip()
    if not name.isprintable() or "/" in name or not 0 < len(name) < 256:
        return None, f"{last} names no checkpoint (it holds {name[:20]!r})"
    return folder / name, checkpoint_fault(folder / name)


def _by_iteration(folder: Path) -> list[Path]:
    """Checkpoints of a training, the highest iteration first; unreadable ones last."""
    iterations: dict[Path, int] = {}
    for path in sorted(folder.glob("*.pth")):
        if path.name in (AVERAGED, BEST):
            continue
        iteration = _iteration_of(path)
        if iteration is not None or path.name.startswith(_PERIODIC):
            iterations[path] = -1 if iteration is None else iteration
    return sorted(iterations, key=lambda path: iterations[path], reverse=True)


def _iteration_of(path: Path) -> int | None:
    """None for what is unreadable, or no checkpoint of a training."""
    with contextlib.suppress(Exception):  # any instruction of a damaged file can fail
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(content["trainer"]["iteration"])
    return None
