"""A lock that keeps two processes from writing the same files."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import sys
from pathlib import Path
from types import TracebackType

from ovd_d2.cache.manifest import CacheError

logger = logging.getLogger(__name__)

# POSIX locks belong to a process: a second lock of the same process would succeed, and closing its
# file would free the first. The process id, because a forked child inherits this set.
_held: set[tuple[int, Path]] = set()


class FileLock:
    """Held from construction to `release`; the system frees it when the process dies.

    Args:
        path: the lock file, created if absent. It stays: deleting it would be a race.
        what: what the lock stands for, in words, for the message.

    Raises:
        CacheError: another writer, in this process or another one, holds it.
    """

    def __init__(self, path: Path, what: str) -> None:
        self._path = path.resolve()
        self._key = (os.getpid(), self._path)
        if self._key in _held:
            raise CacheError(f"this process is already writing to {what}; close that writer first")
        self._stream = self._path.open("a+")  # held while the lock is
        try:
            _lock(self._stream.fileno())
        except (BlockingIOError, PermissionError):  # POSIX allows either
            holder = self._holder()
            self._stream.close()
            raise CacheError(
                f"another process{holder} is writing to {what}; wait for it, stop it, or take "
                "another folder"
            ) from None
        except OSError as error:
            # Some network file systems know no locks: then two writers are the user's to avoid.
            logger.warning("%s cannot be locked against a second writer: %s", what, error)
        _held.add(self._key)
        self._sign()

    def release(self) -> None:
        """Let others have it. May be called twice."""
        _held.discard(self._key)
        self._stream.close()

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def _sign(self) -> None:
        with contextlib.suppress(OSError):  # on a full disk the lock holds without a name
            self._stream.truncate(0)
            self._stream.write(f"{os.getpid()} on {socket.gethostname()}")
            self._stream.flush()

    def _holder(self) -> str:
        with contextlib.suppress(OSError):
            self._stream.seek(0)
            name = self._stream.read()
            return f" ({name})" if name else ""
        return ""


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":
        import fcntl

        # Not flock: loader workers would inherit that lock and hold it after a kill of the writer.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
