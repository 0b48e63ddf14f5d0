"""Detectron2's checkpointer with files that are whole, verified and free of code."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm
from fvcore.common.checkpoint import _filter_reused_missing_keys, _IncompatibleKeys
from torch import nn

from ovd_d2.engine.checkpoint_files import (
    LAST,
    find_last_good,
    remove_leftovers,
    write_checkpoint,
    write_last,
)
from ovd_d2.engine.weights import (
    HEURISTICS,
    KEY,
    local_weights,
    read_checkpoint,
    weights_problems,
    without_query,
)
from ovd_d2.errors import SetupError
from ovd_d2.modeling.vocabulary_holder import VocabularyHolder

logger = logging.getLogger(__name__)

# What a checkpoint must hold: beginnings of parameter names.
WHOLE_MODEL = ("",)
FIRST_STAGE = ("backbone.", "proposal_generator.")

# Evaluation does without these. The vocabulary may come from MODEL.OVD.VOCABULARY, mean and
# deviation of the pixels do from the config; the count of batches serves training alone.
_NOT_NEEDED = ("vocabulary", "pixel_mean", "pixel_std", "num_batches_tracked")
_COMPUTED = "anchor_generator.cell_anchors"


class SafeCheckpointer(DetectionCheckpointer):
    """Checkpoints that survive kills and full disks, and weights that are the model's.

    A checkpoint is written whole or not at all, with its SHA-256 beside it; resuming verifies it
    and falls back to the last good one (:mod:`ovd_d2.engine.checkpoint_files`). Nothing that a file
    names is run (:func:`ovd_d2.engine.weights.read_checkpoint`). A vocabulary that a
    checkpoint brought gives way to that of the next; one that the config names stays.

    Attributes:
        resumed_from: the checkpoint that :meth:`resume_or_load` went on from, or None.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        required: Sequence[str] | None = None,
        key: str = KEY,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model, save_dir, save_to_disk, checkpointables: as Detectron2's.
            required: beginnings of the names that a checkpoint must have all of, for a model that
                nothing will train further: `WHOLE_MODEL`, `FIRST_STAGE`. None, for training: one
                parameter is enough.
            key: of the config, for messages.
        """
        super().__init__(model, save_dir, save_to_disk=save_to_disk, **checkpointables)
        self.required = required
        self.key = key
        self.resumed_from: Path | None = None
        self._path, self._by_similarity = "", False  # of the file that is being loaded

    def save(self, name: str, **kwargs: Any) -> None:
        """Writes `name`.pth into the folder, with the state of all checkpointables and `kwargs`."""
        if not self.save_dir or not self.save_to_disk:
            return
        content = {"model": self.model.state_dict()}
        content.update({key: one.state_dict() for key, one in self.checkpointables.items()})
        path = self._folder / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        remove_leftovers(self._folder)
        write_checkpoint(path, {**content, **kwargs})
        self.tag_last_checkpoint(path.name)

    def save_resumed_as(self, name: str) -> None:
        """Writes what :meth:`resume_or_load` went on from as `name`.pth, too: nothing is newer."""
        if self.resumed_from is None or not self.save_to_disk:
            return
        content = torch.load(self.resumed_from, map_location="cpu", weights_only=True)
        path = self._folder / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        write_checkpoint(path, content)
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_last(self._folder, last_filename_basename)

    def has_checkpoint(self) -> bool:
        return self.resumed_from is not None or (self._folder / LAST).is_file()

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resumes from the last good checkpoint, if one has been saved; else loads weights alone.

        Raises:
            SetupError: checkpoints are there, but none is good; or as :meth:`load`.
        """
        self.resumed_from = self._agree_on_last() if resume else None
        if self.resumed_from is None:
            return self.load(path, checkpointables=[])
        return self.load(str(self.resumed_from))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """As Detectron2's.

        Raises:
            SetupError: no checkpoint, a damaged one, one that asks for code, or another model's.
        """
        needed = self.required is not None and bool(_needed(self.model, self.required))
        if problems := weights_problems(path, self.key, needed=needed):
            raise SetupError(problems)
        self._path = without_query(path)
        self._by_similarity = path.endswith(f"?{HEURISTICS}=True")
        try:
            return super().load(local_weights(path, self.key) if path else path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # Detectron2 leaves it set after an error

    @property
    def _folder(self) -> Path:
        return Path(self.path_manager.get_local_path(self.save_dir))

    def _agree_on_last(self) -> Path | None:
        """The main process looks, for all: others may see another moment of the disk."""
        found, problems = "", []
        if comm.is_main_process() and self.save_dir:
            if self.save_to_disk:
                remove_leftovers(self._folder)
            try:
                found = str(find_last_good(self._folder) or "")
            except SetupError as error:
                problems = error.problems
        found, problems = comm.all_gather((found, problems))[0]
        if problems:
            raise SetupError(problems)
        return Path(found) if found else None

    def _load_file(self, filename: str) -> dict[str, Any]:
        checkpoint = read_checkpoint(filename, self.key)
        if self._by_similarity:
            checkpoint[HEURISTICS] = True
        return checkpoint

    def _load_model(self, checkpoint: dict[str, Any]) -> _IncompatibleKeys:
        self._report_missing_states(checkpoint)
        for module in self.model.modules():
            if isinstance(module, VocabularyHolder):
                module.forget_loaded_vocabulary()
        try:
            incompatible = super()._load_model(checkpoint)
        except SetupError:  # of a part that reads a file of its own: it says what is wrong
            raise
        except ValueError as error:  # values that are no arrays, names twice, a damaged vocabulary
            raise SetupError([f"{self.key}: {self._path}: {error}"]) from error
        absent = set(_filter_reused_missing_keys(self.model, incompatible.missing_keys))
        shapes = {name: shapes for name, *shapes in incompatible.incorrect_shapes}
        if problem := self._missing_problem(absent, shapes):
            raise SetupError([problem])
        return incompatible

    def _report_missing_states(self, checkpoint: dict[str, Any]) -> None:
        lost = [key for key in self.checkpointables if key not in checkpoint]
        if self.resumed_from is not None and lost:
            logger.warning(
                "%s holds no state of: %s (an older version wrote it?); they start anew",
                self.resumed_from,
                ", ".join(lost),
            )

    def _missing_problem(self, absent: set[str], shapes: dict[str, Any]) -> str:
        needed = _needed(self.model, self.required or WHOLE_MODEL)
        lost = [name for name in needed if name in absent or name in shapes]
        if not lost or (self.required is None and len(lost) < len(needed)):
            return ""
        problem = (
            f"{len(lost)} of {len(needed)} parameters are not in {self.key} {self._path} (first: "
            f"{lost[0]}): it is another model's"
        )
        reshaped = [name for name in lost if name in shapes]
        if reshaped:
            stored, wanted = shapes[reshaped[0]]
            problem += (
                f"; {len(reshaped)} have another shape there (first: {reshaped[0]}, {stored}, "
                f"the model's is {wanted})"
            )
        if self.required is None:
            problem += f"; names that are only similar are matched with '?{HEURISTICS}=True'"
        return problem


def save_weights(model: nn.Module, path: Path, **content: Any) -> None:
    """Writes a model, its vocabulary with it, and `content`, for `MODEL.WEIGHTS`.

    It holds no state of a training: `last_checkpoint` stays, and nothing resumes from it.
    """
    logger.info("Saving weights to %s", path)
    write_checkpoint(path, {"model": model.state_dict(), **content})


def _needed(model: nn.Module, beginnings: Sequence[str]) -> list[str]:
    return [
        name
        for name in model.state_dict()
        if name.startswith(tuple(beginnings))
        and name.rpartition(".")[2] not in _NOT_NEEDED
        and _COMPUTED not in name
    ]
