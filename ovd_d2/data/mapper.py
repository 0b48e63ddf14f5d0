"""Where stored proposals meet training: one augmentation for everything in the image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from numpy.typing import NDArray

from ovd_d2.cache import EmbeddingCache, ProposalStore
from ovd_d2.data.augmentation import build_augmentations
from ovd_d2.modeling.roi_heads import get_variant

MIN_PROPOSAL_SIDE = 1.0  # pixels left after augmentation, below which there is nothing to pool


def transform_cached_proposals(
    stored: Mapping[str, NDArray], transforms: T.Transform, image_size: tuple[int, int], top_k: int
) -> Instances:
    """Carries cached proposals through the image's augmentation.

    A proposal that leaves the image takes its embedding with it; the order stays. (Detectron2's
    own `transform_proposals` re-sorts and truncates boxes that come without embeddings.)
    Proposals that have no embedding yet take along where they are in the original image.

    Args:
        stored: fields of a record (:meth:`ovd_d2.cache.EmbeddingCache.raw`), the best of the K
            proposals first: `boxes` in the original image, `embeddings` unless from a proposal
            store; others are not looked at.
        transforms: what the image went through.
        image_size: (height, width) after it.
        top_k: only the first K' = top_k take part.

    Returns:
        `Instances` of the K'' that are left, with `proposal_boxes` and `teacher_embeddings`
        (K'', D), of the type and length that they have in `stored`; of a proposal store
        `original_boxes` (`Boxes`) in place of the embeddings.
    """
    original = stored["boxes"][:top_k]
    boxes, kept = _transform_boxes(original, transforms, image_size)
    result = Instances(image_size, proposal_boxes=Boxes(torch.from_numpy(boxes)))
    if "embeddings" in stored:
        result.teacher_embeddings = torch.from_numpy(stored["embeddings"][:top_k][kept])
    else:
        result.original_boxes = Boxes(torch.from_numpy(original[kept]))
    return result


def _transform_boxes(
    boxes: NDArray[np.float32], transforms: T.Transform, image_size: tuple[int, int]
) -> tuple[NDArray[np.float32], NDArray[np.intp] | slice]:
    """The boxes that are still visible, (K'', 4), and which of the K they are.

    In NumPy: on a few hundred boxes each call of torch costs more than its arithmetic. All corners
    go through all transforms at once; `Transform.apply_box` gives the same, but comes back from
    corners to boxes after every single transform, which takes ten times as long.
    """
    x1y1, x2y2, x2y1, x1y2 = boxes[:, :2], boxes[:, 2:], boxes[:, 2:0:-1], boxes[:, ::3]
    corners = np.concatenate([x1y1, x2y2, x2y1, x1y2])
    points = transforms.apply_coords(corners).reshape(4, len(boxes), 2)
    moved = np.concatenate([points.min(axis=0), points.max(axis=0)], axis=1, dtype=np.float32)
    height, width = image_size
    limits = np.array([width, height, width, height], np.float32)
    np.minimum(np.maximum(moved, 0, out=moved), limits, out=moved)
    sides = moved[:, 2:] - moved[:, :2]
    kept = np.flatnonzero((sides > MIN_PROPOSAL_SIDE).all(axis=1))
    if len(kept) == len(boxes):
        return moved, slice(None)  # spares a copy of the embeddings
    return moved.take(kept, axis=0), kept


def objects_of(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a Detectron2 dict that are no crowds; none where the key is missing."""
    return [one for one in record.get("annotations", ()) if not one.get("iscrowd")]


def no_objects(image_size: tuple[int, int], mask_format: str | None) -> Instances:
    """The ground truth of an image without objects, in all fields that images with objects have.

    Args:
        image_size: (height, width) after augmentation.
        mask_format: of `gt_masks`, "polygon" or "bitmask"; None leaves the field out.

    Returns:
        Empty `gt_boxes` (`Boxes`, (0, 4) float32), `gt_classes` ((0,) int64) and `gt_masks`
        (`PolygonMasks`, or `BitMasks` of (0, height, width) bool).
    """
    empty = detection_utils.annotations_to_instances([], image_size)
    if mask_format == "polygon":
        empty.gt_masks = PolygonMasks([])
    elif mask_format == "bitmask":
        empty.gt_masks = BitMasks(torch.zeros(0, *image_size, dtype=torch.bool))
    return empty


class OpenVocabularyDatasetMapper(DatasetMapper):
    """Detectron2's mapper plus `cached_proposals`, read from an :class:`EmbeddingCache`.

    Image, boxes, masks, keypoints, `sem_seg`, Detectron2's stored `proposals` and cached proposals
    go through one augmentation. From a :class:`ProposalStore` cached proposals come without
    embeddings, and with them comes `original_image`, (H, W, 3) uint8 RGB before the augmentation:
    what :class:`ovd_d2.data.online.OnlineTeacherLoader` needs to add the embeddings. Without either
    it is :class:`DatasetMapper` with large-scale jitter as an option.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        cache: EmbeddingCache | None = None,
        proposals: ProposalStore | None = None,
        proposals_per_image: int = 300,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            is_train: training adds annotations and cached proposals.
            cache: embeddings of every training image; None where the model does not distil.
            proposals: boxes of every training image, for a teacher that runs inside training; in
                place of `cache`.
            proposals_per_image: at most so many cached proposals an image.
            kwargs: of :class:`DatasetMapper`.
        """
        super().__init__(is_train, **kwargs)
        if cache is not None and proposals is not None:
            raise ValueError(
                f"both a cache ({cache.path}) and proposals to embed online ({proposals.path}): "
                "give one"
            )
        self.cache = cache
        self.proposals = proposals
        self.proposals_per_image = proposals_per_image

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        ret = super().from_config(cfg, is_train)
        ret["augmentations"] = build_augmentations(cfg, is_train)
        crops = cfg.INPUT.LSJ.ENABLED or cfg.INPUT.CROP.ENABLED
        ret["recompute_boxes"] = is_train and crops and cfg.MODEL.MASK_ON
        if is_train and get_variant(cfg.MODEL.OVD.VARIANT).distils:
            distillation = cfg.MODEL.OVD.DISTILLATION
            if distillation.ONLINE.PROPOSALS:
                ret["proposals"] = ProposalStore(distillation.ONLINE.PROPOSALS)
            else:
                ret["cache"] = EmbeddingCache(distillation.CACHE)
            ret["proposals_per_image"] = distillation.PROPOSALS_PER_IMAGE
        return ret

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        dataset_dict = copy.deepcopy(dataset_dict)  # changed below
        image = detection_utils.read_image(dataset_dict["file_name"], format=self.image_format)
        detection_utils.check_image_size(dataset_dict, image)
        aug_input = T.AugInput(image, sem_seg=_read_sem_seg(dataset_dict))
        transforms = self.augmentations(aug_input)
        image_size = aug_input.image.shape[:2]
        dataset_dict["image"] = torch.as_tensor(
            np.ascontiguousarray(aug_input.image.transpose(2, 0, 1))
        )
        if aug_input.sem_seg is not None:
            dataset_dict["sem_seg"] = torch.as_tensor(aug_input.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                dataset_dict, image_size, transforms, proposal_topk=self.proposal_topk
            )
        if not self.is_train:
            dataset_dict.pop("annotations", None)
            return dataset_dict
        self._transform_annotations(dataset_dict, transforms, image_size)
        stored = self._read_stored(dataset_dict["image_id"])
        if stored is not None:
            dataset_dict["cached_proposals"] = transform_cached_proposals(
                stored, transforms, image_size, self.proposals_per_image
            )
        if self.proposals is not None:
            dataset_dict["original_image"] = self._rgb(image, dataset_dict["file_name"])
        return dataset_dict

    def _transform_annotations(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.Transform,
        image_shape: tuple[int, int],
    ) -> None:
        """As Detectron2's, in place, but an image without objects comes out as :func:`no_objects`.

        Detectron2's gives it no `gt_masks` and then fails to compute its boxes from them. Base-only
        labels leave many such images; crowds are no objects; a dict may lack "annotations".

        Raises:
            ValueError: masks are wanted, and an object has none.
        """
        objects = objects_of(dataset_dict)
        if not objects:
            dataset_dict.pop("annotations", None)
            mask_format = self.instance_mask_format if self.use_instance_mask else None
            dataset_dict["instances"] = no_objects(image_shape, mask_format)
            return
        if self.use_instance_mask:
            _check_masks(objects, dataset_dict["file_name"])
        # Detectron2 takes "iscrowd": null for a crowd
        dataset_dict["annotations"] = [{**one, "iscrowd": 0} for one in objects]
        super()._transform_annotations(dataset_dict, transforms, image_shape)

    def _read_stored(self, image_id: int) -> dict[str, NDArray] | None:
        """The embeddings stay as stored, whatever their length: the loss normalises them."""
        if self.proposals is not None:
            return _best_first(self.proposals.raw(image_id))
        return None if self.cache is None else self.cache.raw(image_id)

    def _rgb(self, image: NDArray[np.uint8], file_name: str) -> torch.Tensor:
        """The picture as the teacher sees it, (H, W, 3) uint8 RGB, whatever the detector sees."""
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        elif self.image_format != "RGB":  # grey, YUV: colours or rounding are lost
            image = detection_utils.read_image(file_name, format="RGB")
        return torch.from_numpy(image.copy())


def _read_sem_seg(dataset_dict: dict[str, Any]) -> NDArray[np.uint8] | None:
    """(H, W) uint8 category ids of the pixels, where the dict names a file of them."""
    file_name = dataset_dict.pop("sem_seg_file_name", None)
    if file_name is None:
        return None
    return detection_utils.read_image(file_name, "L").squeeze(2)


def _best_first(proposals: dict[str, NDArray]) -> dict[str, NDArray]:
    """In the order in which the cache builder keeps them, so that the first K are the same."""
    order = np.argsort(-proposals["objectness"], kind="stable")
    return {name: values[order] for name, values in proposals.items()}


def _check_masks(objects: Sequence[Mapping[str, Any]], file_name: str) -> None:
    """Detectron2 looks at the first object alone, and its heads miss `gt_masks` much later."""
    without = sum(
        one.get("segmentation") is None or not len(one["segmentation"]) for one in objects
    )
    if without:
        raise ValueError(
            f"{file_name}: {without} of its {len(objects)} objects have no 'segmentation', but the "
            "model learns masks: add masks to the annotation file, or set MODEL.MASK_ON False "
            "(LazyConfig: use_instance_mask=False and a model without mask head)"
        )


def mapping_problems(
    mapper: Callable[[dict[str, Any]], Mapping[str, Any] | None],
    records: Sequence[Mapping[str, Any]],
) -> list[str]:
    """Whether training would stop at its first image without objects: maps one and looks.

    Args:
        mapper: the training mapper, complete with its cache; also one that is not of this package.
        records: the training images; without one that has no objects, the first stands in for it.

    Returns:
        At most one problem. The random state of the augmentations moves on.
    """
    if not records:
        return []
    chosen = next((record for record in records if not objects_of(record)), records[0])
    record = copy.deepcopy({**chosen, "annotations": []})
    name = record.get("file_name", record.get("image_id"))
    try:
        mapped = mapper(record)
    except Exception as error:  # noqa: BLE001  # a mapper of anybody's may raise anything
        return [f"{name}: mapping it as an image without objects fails: {error!r}"]
    if mapped is None or "instances" not in mapped:
        return [
            f"{name}: mapped as an image without objects it has no 'instances'; give it empty ones "
            "(ovd_d2.data.mapper.no_objects)"
        ]
    return []
