"""What a training will need: memory of one GPU and room on the disk, before it starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ovd_d2.clip.untrained import untrained_model
from ovd_d2.engine.build import build_optimizer
from ovd_d2.modeling.roi_heads import get_variant

PROBE_SIZES = (256, 384)  # pixels; memory is linear in the number of pixels
OBJECTS = 8  # annotated objects in a probe image


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes one process needs to train; a lower bound (allocator and cuDNN workspaces come on top).

    Attributes:
        weights: parameters and buffers.
        gradients: one for each trained parameter.
        optimizer: momentum (SGD) or two moments (AdamW).
        activations: what autograd keeps for the backward pass of all images of the process.
        teacher: the online teacher, see `teacher_bytes`; 0 with a cache.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    teacher: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.teacher


def estimate_training_memory(cfg: CfgNode, images_per_process: int) -> MemoryEstimate:
    """Measures two small training steps on the CPU and extrapolates to the training image size.

    Args:
        cfg: complete config; norms that need several GPUs are replaced by plain ones.
        images_per_process: of a batch.
    """
    cfg = on_cpu(cfg)
    model = build_model(cfg).train()
    give_any_vocabulary(model, cfg)
    sizes = [_saved_bytes(cfg, model, size) for size in PROBE_SIZES]
    pixels = [size * size for size in PROBE_SIZES]
    slope = (sizes[1] - sizes[0]) / (pixels[1] - pixels[0])
    per_image = sizes[0] + slope * (training_pixels(cfg) - pixels[0])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    state = [*model.parameters(), *model.buffers()]
    moments = 2 if cfg.SOLVER.OPTIMIZER.upper() == "ADAMW" else 1
    return MemoryEstimate(
        weights=_bytes_of(state),
        gradients=4 * trained,
        optimizer=4 * moments * trained,
        activations=round(per_image * images_per_process),
        teacher=_online_teacher_bytes(cfg),
    )


def teacher_bytes(architecture: str, batch_size: int) -> int:
    """What an open_clip model holds while it embeds crops: both towers and its widest layer.

    Nothing is computed and no weights are read: the model is built without storage.

    Args:
        architecture: an open_clip model name.
        batch_size: crops in one pass.
    """
    model = untrained_model(architecture, device="meta").eval()
    size = model.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    crops = torch.empty(batch_size, 3, height, width, device="meta")
    weights = _bytes_of([*model.parameters(), *model.buffers()])
    widest = 0

    def look(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal widest
        widest = max(widest, _bytes_of([*inputs, output]))

    for module in model.visual.modules():
        module.register_forward_hook(look)
    with torch.no_grad():
        model.encode_image(crops)
    return weights + widest


def training_pixels(cfg: CfgNode) -> int:
    """Pixels of the largest training image."""
    if cfg.INPUT.LSJ.ENABLED:
        return cfg.INPUT.LSJ.SIZE**2
    return max(cfg.INPUT.MIN_SIZE_TRAIN) * cfg.INPUT.MAX_SIZE_TRAIN


def checkpoint_bytes(cfg: CfgNode) -> int:
    """Size of all checkpoints of a training: weights and optimizer state."""
    model = build_model(on_cpu(cfg))
    optimizer = build_optimizer(cfg, model)
    moments = 2 if isinstance(optimizer, torch.optim.AdamW) else 1
    weights = 4 * sum(t.numel() for t in [*model.parameters(), *model.buffers()])
    count = -(-cfg.SOLVER.MAX_ITER // cfg.SOLVER.CHECKPOINT_PERIOD) + 1  # and model_final
    return count * (1 + moments) * weights


def on_cpu(cfg: CfgNode) -> CfgNode:
    """The config for one process without a GPU: norms over several GPUs become plain ones."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    for group in (cfg.MODEL.RESNETS, cfg.MODEL.FPN, cfg.MODEL.RPN, cfg.MODEL.ROI_BOX_HEAD):
        group.NORM = group.NORM.replace("naiveSyncBN", "BN").replace("SyncBN", "BN")
    cfg.MODEL.ROI_BOX_HEAD.FC_NORM = cfg.MODEL.ROI_BOX_HEAD.FC_NORM.replace("SyncBN", "BN")
    cfg.MODEL.ROI_MASK_HEAD.NORM = cfg.MODEL.ROI_MASK_HEAD.NORM.replace("SyncBN", "BN")
    return cfg


def give_any_vocabulary(model: nn.Module, cfg: CfgNode) -> None:
    """Names without meaning, as many as the config's categories; none where none are taken."""
    from ovd_d2.vocabulary import Vocabulary

    set_vocabulary = getattr(model, "set_vocabulary", None)
    if set_vocabulary is None:
        return
    count, dim = cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.OVD.EMBEDDING_DIM
    rows = nn.functional.normalize(torch.ones(count, dim), dim=1)
    names = [str(k) for k in range(count)]
    set_vocabulary(Vocabulary(names, rows, background=rows[0]))


def _online_teacher_bytes(cfg: CfgNode) -> int:
    online = cfg.MODEL.OVD.DISTILLATION.ONLINE
    if not (online.PROPOSALS and get_variant(cfg.MODEL.OVD.VARIANT).distils):
        return 0
    return teacher_bytes(cfg.MODEL.OVD.TEACHER.ARCHITECTURE, online.BATCH_SIZE)


def _bytes_of(values: Iterable[Any]) -> int:
    return sum(v.numel() * v.element_size() for v in values if isinstance(v, Tensor))


def _saved_bytes(cfg: CfgNode, model: nn.Module, size: int) -> int:
    """Bytes autograd keeps in one training forward pass of one image of `size` x `size`."""
    kept: dict[int, int] = {}
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}

    def remember(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    amp = torch.autocast("cpu", dtype=torch.bfloat16, enabled=cfg.SOLVER.AMP.ENABLED)
    with EventStorage(), amp, saved_tensors_hooks(remember, lambda tensor: tensor):
        losses = model([probe_input(cfg, size)])  # alive until counted: no address is used twice
        total = sum(kept.values())
    del losses
    return total


def probe_input(cfg: CfgNode, size: int) -> dict[str, Any]:
    """A training input of `size` x `size` pixels, with as many proposals as there may be."""
    generator = torch.Generator().manual_seed(0)
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(_boxes(OBJECTS, size, generator))
    instances.gt_classes = torch.zeros(OBJECTS, dtype=torch.int64)
    instances.gt_masks = BitMasks(torch.ones(OBJECTS, size, size, dtype=torch.bool))
    cached = Instances((size, size))
    count = cfg.MODEL.OVD.DISTILLATION.PROPOSALS_PER_IMAGE
    cached.proposal_boxes = Boxes(_boxes(count, size, generator))
    cached.teacher_embeddings = torch.ones(count, cfg.MODEL.OVD.EMBEDDING_DIM)
    return {
        "image": torch.zeros(3, size, size, dtype=torch.uint8),
        "instances": instances,
        "cached_proposals": cached,
        "height": size,
        "width": size,
    }


def _boxes(count: int, size: int, generator: torch.Generator) -> Tensor:
    corners = torch.rand(count, 2, generator=generator) * size / 2
    return torch.cat([corners, corners + size / 3], dim=1)
