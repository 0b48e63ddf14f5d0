"""From a Detectron2 dict to the model's input: one augmentation for everything in the image."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances, PolygonMasks
from numpy.typing import NDArray

from ovd_d2.data.augmentation import build_augmentations
from ovd_d2.data.passengers import MappedImage, Passenger
from ovd_d2.systems import system_of


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
    """Detectron2's mapper with passengers: what else goes through the image's augmentation.

    Image, boxes, masks, keypoints, `sem_seg` and Detectron2's stored `proposals` are as there.
    Large-scale jitter is an option, and images without objects are training images, too.
    """

    @configurable
    def __init__(
        self, is_train: bool, *, passengers: Sequence[Passenger] = (), **kwargs: Any
    ) -> None:
        """
        Args:
            is_train: training adds annotations.
            passengers: called in this order once everything else of the output is there.
            kwargs: of :class:`DatasetMapper`.
        """
        super().__init__(is_train, **kwargs)
        self.passengers = list(passengers)

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Passengers are those of the system that the config is of."""
        ret = super().from_config(cfg, is_train)
        ret["augmentations"] = build_augmentations(cfg, is_train)
        crops = cfg.INPUT.LSJ.ENABLED or cfg.INPUT.CROP.ENABLED
        ret["recompute_boxes"] = is_train and crops and cfg.MODEL.MASK_ON
        ret["passengers"] = passengers_of(cfg) if is_train else ()
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
        objects = None
        if self.is_train:
            objects = self._transform_annotations(dataset_dict, transforms, image_size)
        else:
            dataset_dict.pop("annotations", None)
        mapped = MappedImage(
            dataset_dict, image, self.image_format, transforms, image_size, objects
        )
        for passenger in self.passengers:
            passenger(mapped)
        return dataset_dict

    def _transform_annotations(
        self,
        dataset_dict: dict[str, Any],
        transforms: T.Transform,
        image_shape: tuple[int, int],
    ) -> list[dict[str, Any]]:
        """As Detectron2's, in place, but an image without objects comes out as :func:`no_objects`.

        Detectron2's gives it no `gt_masks` and then fails to compute its boxes from them. Base-only
        labels leave many such images; crowds are no objects; a dict may lack "annotations".

        Returns:
            The annotations that are left in `instances`, in their order, as they came.

        Raises:
            ValueError: masks are wanted, and an object has none.
        """
        objects = objects_of(dataset_dict)
        if not objects:
            dataset_dict.pop("annotations", None)
            mask_format = self.instance_mask_format if self.use_instance_mask else None
            dataset_dict["instances"] = no_objects(image_shape, mask_format)
            return []
        if self.use_instance_mask:
            _check_masks(objects, dataset_dict["file_name"])
        # Detectron2 takes "iscrowd": null for a crowd, and leaves out boxes that have gone without
        # saying which: it gets places for classes.
        dataset_dict["annotations"] = [
            {**one, "iscrowd": 0, "category_id": place} for place, one in enumerate(objects)
        ]
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        instances = dataset_dict["instances"]
        kept = [objects[place] for place in instances.gt_classes.tolist()]
        classes = [int(one["category_id"]) for one in kept]
        instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
        return kept


def _read_sem_seg(dataset_dict: dict[str, Any]) -> NDArray[np.uint8] | None:
    """(H, W) uint8 category ids of the pixels, where the dict names a file of them."""
    file_name = dataset_dict.pop("sem_seg_file_name", None)
    if file_name is None:
        return None
    return detection_utils.read_image(file_name, "L").squeeze(2)


class WithPassengers:
    """Gives any mapper its passengers: a project's own keeps its augmentation and its keys.

    The mapper must keep its augmentations as Detectron2's :class:`DatasetMapper` does: in an
    attribute `augmentations`, called once per image. A training mapper must return `instances`.
    """

    def __init__(self, mapper: Any, passengers: Sequence[Passenger]) -> None:
        """
        Args:
            mapper: is copied, not changed.
            passengers: see :class:`OpenVocabularyDatasetMapper`.

        Raises:
            TypeError: it has no `augmentations`.
        """
        if not hasattr(mapper, "augmentations"):
            raise TypeError(
                f"{type(mapper).__name__} has no attribute 'augmentations', by which proposals "
                "could follow its image: derive it from detectron2.data.DatasetMapper, or call the "
                "passengers in it (ovd_d2.data.passengers)"
            )
        self.mapper = copy.copy(mapper)
        self.passengers = list(passengers)
        self._recorder = self.mapper.augmentations = _Recorder(mapper.augmentations)

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any] | None:
        """What the mapper returns, with the passengers; None where it drops the image."""
        record = self.mapper(dataset_dict)
        pixels, transforms = self._recorder.take()
        if record is None:
            return None
        image_format = getattr(self.mapper, "image_format", None) or "BGR"
        size = tuple(record["image"].shape[-2:])
        mapped = MappedImage(record, pixels, image_format, transforms, size)
        for passenger in self.passengers:
            passenger(mapped)
        return record


class _Recorder:
    """Augmentations that remember what they were given and what they did, once."""

    def __init__(self, augmentations: Any) -> None:
        is_list = isinstance(augmentations, (list, tuple))
        self._augment = T.AugmentationList(augmentations) if is_list else augmentations
        self._last: tuple[Any, T.Transform] | None = None

    def __call__(self, aug_input: T.AugInput) -> T.Transform:
        pixels = aug_input.image
        transforms = self._augment(aug_input)
        self._last = pixels, transforms
        return transforms

    def take(self) -> tuple[Any, T.Transform]:
        if self._last is None:
            raise RuntimeError(
                "the mapper did not call its 'augmentations': proposals cannot follow its image"
            )
        last, self._last = self._last, None
        return last


def passengers_of(cfg: CfgNode) -> Sequence[Passenger]:
    """The passengers of the system that a config is of; none without a system."""
    system = system_of(cfg)
    return () if system is None else system.passengers(cfg)


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
