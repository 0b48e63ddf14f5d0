"""The processes that do one thing together, and how they wait for one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
from detectron2.utils import comm

# How far the slowest process may lag behind the fastest. Detectron2's 30 minutes would end a build
# on GPUs of unequal speed. A process that dies is noticed at once all the same: gloo sees its
# connection close.
PATIENCE = timedelta(hours=24)

T = TypeVar("T")


class RankError(RuntimeError):
    """Another process of the group has failed or ended."""


@dataclass(frozen=True)
class _Outcome:
    value: Any = None
    error: str = ""


class Ranks:
    """The ranks of torch.distributed's process group; a single one where there is no group.

    All ranks must construct it, and must call `gather` and `first` in the same order.

    Attributes:
        rank: of this process, from 0.
        count: of processes.
    """

    def __init__(self) -> None:
        self.rank: int = comm.get_rank()
        self.count: int = comm.get_world_size()
        # Over gloo whatever the main group: what is exchanged are small objects of the CPU.
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.count > 1 else None

    def gather(self, work: Callable[[], T]) -> list[T]:
        """Every rank does `work`; each gets the results of all, in the order of the ranks.

        Raises:
            Exception: where `work` raised it, in that rank.
            RankError: in the other ranks, with its message; or a process has ended.
        """
        if self.count == 1:
            return [work()]
        try:
            mine = _Outcome(work())
        except Exception as error:
            self._exchange(_Outcome(error=str(error) or type(error).__name__))
            raise
        outcomes = self._exchange(mine)
        failed = [(rank, outcome) for rank, outcome in enumerate(outcomes) if outcome.error]
        if failed:
            rank, outcome = failed[0]
            raise RankError(f"rank {rank} of {self.count}: {outcome.error}")
        return [outcome.value for outcome in outcomes]

    def on_rank_0(self, work: Callable[[], T]) -> T:
        """Rank 0 alone does `work`; all ranks get its result. Errors as in `gather`."""
        results: list[Any] = self.gather(work if self.rank == 0 else lambda: None)  # type: ignore[arg-type, return-value]
        value: T = results[0]
        return value

    def _exchange(self, outcome: _Outcome) -> list[_Outcome]:
        try:
            outcomes: list[_Outcome] = comm.all_gather(outcome, group=self._group)
        except RuntimeError as error:  # what torch.distributed raises for a lost connection
            raise RankError(
                f"another process of this group has ended (noticed by rank {self.rank} of "
                f"{self.count}: {error}); its own message says why. Run the same command again: "
                "what is stored stays"
            ) from error
        return outcomes
