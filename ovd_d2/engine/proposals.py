"""The first stage as a producer of stored proposals."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.structures import Boxes, Instances
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from tqdm import tqdm

from ovd_d2.cache import Manifest, RecordWriter, dataset_info
from ovd_d2.data.mapper import OpenVocabularyDatasetMapper
from ovd_d2.files import fingerprint_json, sha256_file
from ovd_d2.modeling.objectness import objectness_kind
from ovd_d2.scoring import objectness_probabilities


def proposal_manifest(
    cfg: CfgNode, dataset_name: str, dataset_dicts: list[dict[str, Any]]
) -> Manifest:
    """Says which weights and which first stage the proposals of a data set come from."""
    recipe = {
        "weights": sha256_file(PathManager.get_local_path(cfg.MODEL.WEIGHTS)),
        "top_k": cfg.MODEL.RPN.POST_NMS_TOPK_TEST,
        "nms": cfg.MODEL.RPN.NMS_THRESH,
        "pre_nms_top_k": cfg.MODEL.RPN.PRE_NMS_TOPK_TEST,
        "input_size": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
    }
    return Manifest(
        kind="proposals",
        dataset=dataset_info(dataset_name, dataset_dicts),
        proposals=fingerprint_json(recipe),
        recipe=recipe,
    )


@torch.no_grad()
def extract_proposals(
    cfg: CfgNode,
    model: nn.Module,
    dataset_dicts: list[dict[str, Any]],
    writer: RecordWriter,
) -> Manifest:
    """Writes the model's proposals of every image that the writer waits for.

    Proposals are what the RPN keeps after its NMS (`RPN.NMS_THRESH`, the best
    `RPN.POST_NMS_TOPK_TEST`), in the coordinates of the original image, sorted by falling
    objectness. All ranks of a process group call this together; each takes its share of the images.

    Raises:
        TypeError: the model has no first stage that can be asked alone.
        SetupError: see :func:`objectness_kind`.
    """
    predict_proposals: Any = getattr(model, "predict_proposals", None)
    if predict_proposals is None:
        raise TypeError(
            f"{type(model).__name__} has no method predict_proposals: proposals need "
            "MODEL.META_ARCHITECTURE OpenVocabularyRCNN"
        )
    kind = objectness_kind(cfg)
    by_id = {record["image_id"]: record for record in dataset_dicts}
    todo = [by_id[image_id] for image_id in writer.waiting_ids]
    writer.check_space(cfg.MODEL.RPN.POST_NMS_TOPK_TEST)
    model.eval()
    for batch in tqdm(_batches(cfg, todo), "proposals", unit="img", disable=writer.ranks.rank > 0):
        for record, proposals in zip(batch, predict_proposals(batch), strict=True):
            size = record["height"], record["width"]
            boxes, objectness = to_original_image(proposals, *size, kind)
            writer.add(record["image_id"], {"boxes": boxes, "objectness": objectness})
    return writer.finish()


def _batches(cfg: CfgNode, records: list[dict[str, Any]]) -> Collection[list[dict[str, Any]]]:
    """The images in this order, one per batch."""
    if not records:  # of which Detectron2 makes no data set
        return []
    loader: Collection[list[dict[str, Any]]] = build_detection_test_loader(
        records,
        mapper=OpenVocabularyDatasetMapper(cfg, is_train=False),
        sampler=SequentialSampler(records),  # the loader's own would divide them among the ranks
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return loader


def to_original_image(
    proposals: Instances, height: int, width: int, objectness: str
) -> tuple[Tensor, Tensor]:
    """Proposals of the network's input in the coordinates of the original image.

    Args:
        proposals: with `proposal_boxes` and `objectness_logits`.
        height, width: of the original image, pixels.
        objectness: see :func:`ovd_d2.scoring.objectness_probabilities`.

    Returns:
        (K, 4) float32 absolute XYXY inside the image, none empty; (K,) float32 probabilities.
    """
    boxes = Boxes(proposals.proposal_boxes.tensor.clone())
    boxes.scale(width / proposals.image_size[1], height / proposals.image_size[0])
    boxes.clip((height, width))
    keep = boxes.nonempty()
    probabilities = objectness_probabilities(proposals.objectness_logits[keep], objectness)
    return boxes.tensor[keep].float().cpu(), probabilities.cpu()
