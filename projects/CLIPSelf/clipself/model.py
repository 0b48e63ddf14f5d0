"""CLIPSelf: a CLIP ViT learns from its own image embeddings of crops what its regions are."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ovd_d2.clip.dense import DenseViT, roi_features
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.modeling.averaging import average_weights
from ovd_d2.projects.clipself.losses import distillation_distances, joint_mean
from ovd_d2.projects.clipself.passengers import regions_of
from ovd_d2.projects.clipself.preprocess import normalised, padded_square

VISUAL = "visual."  # the image tower in the names of an open_clip model's weights


@META_ARCH_REGISTRY.register()
class CLIPSelf(nn.Module):
    """The self-distillation (Wu et al., arXiv 2310.01403, section 3.2).

    The student is a copy of the teacher's image tower whose blocks train: features pooled from its
    dense map become those that the teacher has of a crop of the region. In evaluation weights are
    the average of student and teacher (:meth:`refined`); training goes on from the student.

    Parameters and state dict are the student's alone.

    Attributes:
        student: its dense features.
        teacher: the frozen model; no sub-module.
        image_size: side in pixels of the square that images are padded to in training.
        alpha: share of the student in the average.
    """

    @configurable
    def __init__(
        self,
        *,
        teacher: CLIPTeacher,
        image_size: int,
        alpha: float,
        window: int = 0,
        global_blocks: Iterable[int] = (),
        gradient_checkpointing: bool = False,
        compile_towers: bool = False,
    ) -> None:
        """
        Args:
            teacher: a CLIP with a ViT; it is used, not copied.
            image_size, alpha: see the attributes.
            window, global_blocks: of the student's attention, see :class:`DenseViT`.
            gradient_checkpointing: the student's blocks keep no activations.
            compile_towers: run student and teacher through torch.compile in training.

        Raises:
            ValueError: not a ViT of a known family; a global block that there is not.
        """
        super().__init__()
        self.teacher = teacher
        self.image_size = image_size
        self.alpha = alpha
        self._attention = {"window": window, "global_blocks": tuple(global_blocks)}
        self.student = self._dense(copy.deepcopy(teacher.visual))
        self.student.train_blocks()
        if gradient_checkpointing:
            self.student.visual.set_grad_checkpointing(True)  # type: ignore[operator]
        if compile_towers:
            self.student.compile()
            teacher.visual.compile()
        # not a sub-module; and the weights that it was made of
        self._refined: tuple[Any, list[DenseViT]] = ((), [])

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        clipself = cfg.MODEL.CLIPSELF
        return {
            "teacher": configured_teacher(cfg, device=cfg.MODEL.DEVICE),
            "image_size": clipself.IMAGE_SIZE,
            "alpha": clipself.ALPHA,
            "window": clipself.WINDOW_SIZE,
            "global_blocks": clipself.GLOBAL_ATTENTION_BLOCKS,
            "gradient_checkpointing": clipself.GRADIENT_CHECKPOINTING,
            "compile_towers": clipself.COMPILE,
        }

    @property
    def device(self) -> torch.device:
        return next(self.student.parameters()).device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """
        Args:
            batched_inputs: Detectron2's, with `image` (3, h, w) uint8 RGB; in training with
                `instances` on which regions ride (:mod:`ovd_d2.projects.clipself.passengers`).

        Returns:
            In training a dict with the scalar `loss_clipself`, of all processes together. In
            evaluation a dict per image: `dense_features` (D, h, w) float32 unit vectors of the
            averaged weights, and `padded_size`, the (height, width) in pixels of the input that
            they cover.
        """
        images = self.preprocess(batched_inputs)
        if not self.training:
            size = (images.shape[2], images.shape[3])
            maps = self.averaged_dense_features(images)
            return [{"dense_features": one, "padded_size": size} for one in maps]
        found = regions_of([one["instances"] for one in batched_inputs])
        boxes = [one.boxes.to(self.device) for one in found]
        crops = torch.cat([one.crops.to(self.device) for one in found])
        target = self.teacher.encode_images(self._normalised(crops))
        pooled = roi_features(self.student(images), boxes, [(1.0, 1.0)] * len(boxes))
        return {"loss_clipself": joint_mean(distillation_distances(pooled, target))}

    def preprocess(self, batched_inputs: Sequence[dict[str, Any]]) -> Tensor:
        """(B, 3, S, S) float32 as the ViT takes it: padded with black, then normalised.

        S is `image_size` in training. In evaluation it is the longest side among the images (which
        `INPUT.MAX_SIZE_TEST` gives to all of them), up to whole patches.

        Raises:
            ValueError: an image is larger than `image_size` in training.
        """
        images = [one["image"].to(self.device) for one in batched_inputs]
        longest = max(max(one.shape[1:]) for one in images)
        if self.training and longest > self.image_size:
            raise ValueError(
                f"an image has {longest} pixels a side, but MODEL.CLIPSELF.IMAGE_SIZE is "
                f"{self.image_size}: set INPUT.LSJ.SIZE to it"
            )
        patch = self.student.patch_size
        side = self.image_size if self.training else -(-longest // patch) * patch
        return self._normalised(padded_square(images, side))

    @torch.no_grad()
    def averaged_dense_features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) of :meth:`preprocess` -> (B, D, h, w) unit vectors of :meth:`refined`."""
        return self.refined()(images)

    def refined(self) -> DenseViT:
        """A frozen copy in eval mode with the averaged weights, made anew once they change."""
        parameters = list(self.student.parameters())
        now = [(one.data_ptr(), one._version) for one in parameters]
        made_of, found = self._refined
        if made_of != now:
            found = [self._dense(copy.deepcopy(self.teacher.visual)).eval()]
            found[0].visual.load_state_dict(self._averaged_visual())
            self._refined = (now, found)
        return found[0]

    def refined_state(self) -> dict[str, Tensor]:
        """All weights of the refined CLIP under open_clip's names: averaged image tower, the
        teacher's text tower. New tensors on the CPU."""
        averaged = {f"{VISUAL}{key}": value for key, value in self._averaged_visual().items()}
        whole = {**self.teacher.state_dict(), **averaged}
        return {key: value.detach().cpu().clone() for key, value in whole.items()}

    def train(self, mode: bool = True) -> CLIPSelf:
        """As any module's; what evaluation needs gives its memory back."""
        if mode:
            self._refined = ((), [])
        return super().train(mode)

    @torch.no_grad()
    def _averaged_visual(self) -> dict[str, Tensor]:
        student, teacher = self.student.visual.state_dict(), self.teacher.visual.state_dict()
        return average_weights(student, teacher, self.alpha)

    def _dense(self, visual: nn.Module) -> DenseViT:
        return DenseViT(visual, **self._attention)  # type: ignore[arg-type]

    def _normalised(self, images: Tensor) -> Tensor:
        return normalised(images, self.teacher.mean, self.teacher.std)
