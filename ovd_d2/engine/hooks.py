"""Hooks of the training loop."""

from __future__ import annotations

import logging
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm

from ovd_d2.engine.checkpoint import save_weights
from ovd_d2.engine.checkpoint_files import AVERAGED, BEST, checkpoint_fault
from ovd_d2.engine.validation import lower_is_better
from ovd_d2.modeling.open_vocabulary import unwrapped
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


class StopLoading(HookBase):
    """Ends the processes of the training loader with the training.

    Left to Python's garbage collection, which closes their queues first, they would not hear of it,
    and PyTorch would wait five seconds for each. Register it before the hooks that evaluate, which
    then have their memory.
    """

    def after_train(self) -> None:
        trainer: Any = self.trainer
        loop = getattr(trainer, "_trainer", trainer)
        loader = loop.data_loader
        loop.reset_data_loader(lambda: loader)


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
            self._average.load_state_dict(self._resumed)
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
        if self.trainer.iter + 1 == self.trainer.max_iter:
            self.write()

    def write(self) -> None:
        """The main process writes `model_ema.pth`."""
        if comm.is_main_process():
            save_weights(self.model, self._path, iteration=self.trainer.iter)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._average is None else self._average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._resumed = state


class WeightDecaySteps(HookBase):
    """Multiplies the weight decay of every group by a factor at each of several iterations.

    What counts is the iteration alone: a resumed training goes on with the decay of its place.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, steps: Sequence[float], gamma: float
    ) -> None:
        """
        Args:
            optimizer: as it was built; one that has been loaded from a checkpoint may have the
                decay of a later step.
            steps: the first iterations with a smaller decay, rising; they need not be whole.
            gamma: the factor.
        """
        self._optimizer = optimizer
        self._first = [group["weight_decay"] for group in optimizer.param_groups]
        self._steps, self._gamma = steps, gamma

    def before_step(self) -> None:
        factor = self._gamma ** bisect_right(self._steps, self.trainer.iter)
        for group, decay in zip(self._optimizer.param_groups, self._first, strict=True):
            group["weight_decay"] = decay * factor


class StoppedEarly(BaseException):
    """Ends a training before its last iteration.

    No `Exception`: Detectron2 would log it as an error, with its traceback.
    """


class Plateau(HookBase):
    """Lowers the rates, and ends the training, once evaluations bring no new best.

    Register it as the last hook. What a checkpoint holds of it is from before an evaluation of the
    same iteration.
    """

    def __init__(
        self, metric: str, *, period: int, factor: float, patience: int, floor: float, stop: int
    ) -> None:
        """
        Args:
            metric: as of :class:`BestCheckpoint`.
            period: iterations between two evaluations.
            factor: of all rates, after more than `patience` evaluations in a row without a new
                best.
            patience: evaluations.
            floor: no rate goes below it.
            stop: evaluations in a row without a new best that end the training; 0: none do.
        """
        self._metric = metric
        self._period = period
        self._factor, self._patience, self._floor = factor, patience, floor
        self._stop = stop
        self._best: float | None = None
        self._stale = 0  # evaluations without a new best
        self._waited = 0  # the same since the rates were lowered

    def before_train(self) -> None:
        self._end_if_stale()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period or done == self.trainer.max_iter:
            return
        self._count(self._latest())
        if self._waited > self._patience:
            self._waited = 0
            self._lower()
        self._end_if_stale()

    def _latest(self) -> float | None:
        """Of this evaluation, on all ranks."""
        value, iteration = self.trainer.storage.latest().get(self._metric, (None, None))
        found: float | None = comm.all_gather(value if iteration == self.trainer.iter else None)[0]
        return found

    def _count(self, value: float | None) -> None:
        sign = -1 if lower_is_better(self._metric) else 1
        if value is not None and (self._best is None or sign * value > sign * self._best):
            self._best, self._stale, self._waited = value, 0, 0
            return
        self._stale += 1
        self._waited += 1

    def _lower(self) -> None:
        groups, scheduler = self.trainer.optimizer.param_groups, self.trainer.scheduler
        scheduler.base_lrs = [self._lowered(rate) for rate in scheduler.base_lrs]
        for group in groups:
            group["lr"] = self._lowered(group["lr"])
        logger.info("%s has not improved: rates times %g", self._metric, self._factor)

    def _lowered(self, rate: float) -> float:
        return min(rate, max(rate * self._factor, self._floor))

    def _end_if_stale(self) -> None:
        if self._stop and self._stale >= self._stop:
            raise StoppedEarly(
                f"{self._metric} has not improved in {self._stale} evaluations, its best is "
                f"{self._best}"
            )

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best, "stale": self._stale, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._best, self._stale, self._waited = state["best"], state["stale"], state["waited"]


class BestCheckpoint(HookBase):
    """Keeps the weights of the best evaluation so far as `model_best.pth`.

    Unlike Detectron2's `BestCheckpointer` it writes the weights that were evaluated and nothing to
    resume from, `last_checkpoint` stays, and a resumed training knows what was best before: the
    file says so. Register it on the main process, after the hooks that evaluate.
    """

    def __init__(
        self, metric: str, *, period: int, folder: Path, model: Callable[[], nn.Module]
    ) -> None:
        """
        Args:
            metric: as evaluations put it into the event storage, "bbox/AP50_base"; the highest is
                the best, of losses the lowest.
            period: iterations between two evaluations.
            folder: for `model_best.pth`.
            model: gives what was evaluated.
        """
        self._metric = metric
        self._period = period
        self._path = folder / BEST
        self._model = model
        self._best: float | None = None

    def before_train(self) -> None:
        if not (self.trainer.start_iter and self._path.is_file()):
            return
        if fault := checkpoint_fault(self._path):
            logger.warning("%s. The best is looked for anew", fault)
            return
        stored = torch.load(self._path, map_location="cpu", weights_only=True, mmap=True)
        self._best = stored["best"].get(self._metric)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done % self._period == 0 and done != self.trainer.max_iter:  # as Detectron2's EvalHook
            self._compare()

    def after_train(self) -> None:
        if self.trainer.iter + 1 >= self.trainer.max_iter:
            self._compare()

    def _compare(self) -> None:
        latest = self.trainer.storage.latest()
        value, iteration = latest.get(self._metric, (None, None))
        if value is None or iteration != self.trainer.storage.iter:
            logger.warning(
                "This evaluation gave no %s (nan where nothing has ground truth), so %s stays",
                *(self._metric, self._path),
            )
            return
        sign = -1 if lower_is_better(self._metric) else 1
        if self._best is not None and sign * value <= sign * self._best:
            return
        logger.info("%s is %.4f, the best so far", self._metric, value)
        self._best = value
        done = min(self.trainer.iter, self.trainer.max_iter - 1)
        model = unwrapped(self._model())
        save_weights(model, self._path, iteration=done, best={self._metric: value})
