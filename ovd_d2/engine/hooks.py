"""Hooks of the training loop."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ovd_d2.engine.checkpoint import save_weights
from ovd_d2.engine.checkpoint_files import AVERAGED
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part, unwrapped
from ovd_d2.seeding import seed_generators

logger = logging.getLogger(__name__)

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


class WeightAveraging(HookBase):
    """An exponential moving average of the model (`torch.optim.swa_utils`), to be evaluated.

    Parameters and floating-point buffers, as the statistics of batch norms, are averaged after
    every step. Checkpoints hold the average beside the raw weights, so that resuming goes on with
    it; after the last step it is also written as `model_ema.pth`. Register it before the hooks that
    write checkpoints and evaluate.
    """

    def __init__(self, model: nn.Module, *, decay: float, folder: Path) -> None:
        """
        Args:
            model: what trains, also inside `DistributedDataParallel`; is copied.
            decay: share of the average that stays in each step, below 1.
            folder: for `model_ema.pth`.
        """
        self._source = unwrapped(model)
        self._decay = decay
        self._path = folder / AVERAGED
        self._average: AveragedModel | None = None
        self._resumed: dict[str, Any] | None = None

    @property
    def model(self) -> nn.Module:
        """The averaged model.

        Raises:
            RuntimeError: training has not begun.
        """
        if self._average is None:
            raise RuntimeError("there is no average before training begins")
        return self._average.module

    def before_train(self) -> None:
        # Only now: weights and vocabulary have been loaded
        average = get_ema_multi_avg_fn(self._decay)
        self._average = AveragedModel(self._source, multi_avg_fn=average, use_buffers=True)
        if self._resumed is not None:
            self._resume(self._average, self._resumed)
            self._resumed = None
        elif self.trainer.start_iter:
            logger.warning(
                "The checkpoint holds no average of the weights (SOLVER.EMA, train.model_ema): it "
                "begins at iteration %d",
                self.trainer.start_iter,
            )

    def after_step(self) -> None:
        if self._average is None:
            raise RuntimeError("after_step before before_train")
        self._average.update_parameters(self._source)
        if self.trainer.iter + 1 == self.trainer.max_iter and comm.is_main_process():
            save_weights(self.model, self._path, iteration=self.trainer.iter)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = state

    def _resume(self, average: AveragedModel, state: dict[str, Any]) -> None:
        average.load_state_dict(state)
        part, source = open_vocabulary_part(average.module), open_vocabulary_part(self._source)
        if part is not None and source is not None and source.vocabulary is not None:
            part.set_vocabulary(source.vocabulary)  # the config may have brought another
