"""Hooks of the training loop."""

from __future__ import annotations

import sys
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm

from ovd_d2.seeding import seed_generators

_MODEL = 3  # sets these random numbers apart from the training loader's


class ProgressBar(HookBase):
    """A bar with rate, time left and the smoothed total loss; the log file keeps the details."""

    def __init__(self, description: str, refresh_period: int = 10) -> None:
        """
        Args:
            description: what is being trained.
            refresh_period: iterations between two updates.
        """
        self._description = description
        self._period = refresh_period
        self._bar: tqdm | None = None

    def before_train(self) -> None:
        self._bar = tqdm(
            total=self.trainer.max_iter,
            initial=self.trainer.start_iter,
            desc=self._description,
            unit="it",
            file=sys.stderr,
            dynamic_ncols=True,
        )

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._bar is None or (done % self._period and done != self.trainer.max_iter):
            return
        losses = self.trainer.storage.histories().get("total_loss")
        if losses is not None:
            self._bar.set_postfix(loss=f"{losses.median(20):.3f}", refresh=False)
        self._bar.update(done - self._bar.n)

    def after_train(self) -> None:
        if self._bar is not None:
            self._bar.close()


class SeedIterations(HookBase):
    """Seeds all generators before each iteration, by seed, rank and iteration.

    What the model draws (proposals to train on, dropout) is then the same whether the training was
    resumed before the iteration or not. Register it first. The seed is in the checkpoint.
    """

    def __init__(self, seed: int) -> None:
        """
        Args:
            seed: whole number >= 0, the same on all ranks.
        """
        self._seed = seed

    def before_step(self) -> None:
        seed_generators(self._seed, comm.get_rank(), self.trainer.iter, _MODEL, devices=True)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self._seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._seed = int(state["seed"])
