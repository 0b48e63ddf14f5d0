from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
import torch

MEMORY = 1 << 30  # bytes beyond what the process has
SECONDS = 60


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    """A test that takes a gigabyte more than the process had, or a minute, fails."""

    def too_long(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not refused within {SECONDS} seconds")

    torch.set_num_threads(1)  # threads reserve memory
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that the code in a hostile file would make; no test may leave it there."""
    path = tmp_path / "the-code-has-run"
    yield path
    assert not path.exists(), "the code in the file has run"
