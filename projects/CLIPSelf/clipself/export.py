"""The refined CLIP as a file, during and after training."""

from __future__ import annotations

import json
from pathlib import Path

from detectron2.engine import HookBase
from detectron2.utils import comm
from safetensors.torch import save_file

from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write
from ovd_d2.projects.clipself.model import CLIPSelf

FILE = "clipself.safetensors"


def export_refined(model: CLIPSelf, path: Path) -> None:
    """Writes the whole refined CLIP, whole or not at all.

    `load_teacher(architecture, path)` reads it; so does open_clip, as `pretrained=path`. The same
    weights give the same bytes. The metadata say what it was made of.
    """
    state = {key: value.contiguous() for key, value in model.refined_state().items()}
    origin = {"teacher": model.teacher.fingerprint, "alpha": model.alpha}
    with atomic_write(path) as temporary:
        # one entry: safetensors writes several in any order
        save_file(state, temporary, {"clipself": json.dumps(origin)})


class ExportRefined(HookBase):
    """Exports with every periodic checkpoint and after the last step; training goes on as it was.

    Register it before the hook that writes checkpoints: where a run ends in between, the resumed
    one writes the file again.
    """

    def __init__(self, model: CLIPSelf, *, folder: Path, period: int) -> None:
        """
        Args:
            model: not inside `DistributedDataParallel`.
            folder: for `clipself.safetensors`.
            period: iterations between two checkpoints.
        """
        self._model = model
        self._path = folder / FILE
        self._period = period

    def before_train(self) -> None:
        """
        Raises:
            SetupError: the weights that training goes on from were made with another teacher.
        """
        student, teacher = self._model.student.visual, self._model.teacher.visual.state_dict()
        other = [
            name
            for name, one in student.named_parameters()
            if not one.requires_grad and not one.equal(teacher[name])
        ]
        if other:
            raise SetupError(
                [
                    f"the student's {other[0]} is not the teacher's, and it does not train: the "
                    f"checkpoint is of another teacher than {self._model.teacher.architecture} "
                    "(MODEL.OVD.TEACHER); name that one, or another OUTPUT_DIR"
                ]
            )

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if comm.is_main_process() and (done % self._period == 0 or done == self.trainer.max_iter):
            export_refined(self._model, self._path)
