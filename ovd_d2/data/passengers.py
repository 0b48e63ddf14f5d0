"""What rides through the mapper with an image, under the image's own augmentation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances
from numpy.typing import NDArray

from ovd_d2.cache import RecordStore, check_compatible, coverage_problems
from ovd_d2.structures import ORIGINAL_IMAGE, attach_cached_proposals
from ovd_d2.systems import SetupContext

DATA_SET = "data_set"  # key of a training image's dict: the name of the set that it is of
MIN_PROPOSAL_SIDE = 1.0  # pixels left after augmentation, below which there is nothing to pool


@dataclass(frozen=True)
class MappedImage:
    """An image on its way through a mapper.

    Attributes:
        record: the mapper's output so far; a training image has `instances`.
        pixels: (H, W, C) uint8 before the augmentation.
        image_format: of `pixels`, e.g. "BGR".
        transforms: what the image went through.
        size: (height, width) after it.
        objects: the annotations of the objects of `instances`, one each, as they were before the
            augmentation; None where there are none, or the mapper does not say.
    """

    record: dict[str, Any]
    pixels: NDArray[np.uint8]
    image_format: str
    transforms: T.Transform
    size: tuple[int, int]
    objects: Sequence[Mapping[str, Any]] | None = None

    def original_rgb(self) -> torch.Tensor:
        """As the teacher sees it, (H, W, 3) uint8 RGB, whatever the detector sees."""
        pixels = self.pixels
        if self.image_format == "BGR":
            pixels = pixels[:, :, ::-1]
        elif self.image_format != "RGB":  # grey, YUV: colours or rounding are lost
            pixels = detection_utils.read_image(self.record["file_name"], format="RGB")
        return torch.from_numpy(pixels.copy())


class Passenger(ABC):
    """Adds to the mapper's output: to `image.record` or its `instances`."""

    @abstractmethod
    def __call__(self, image: MappedImage) -> None: ...

    def problems(self, context: SetupContext) -> list[str]:
        """Why a training could not go on with it, found before the training starts."""
        return []


class StoredProposals(Passenger):
    """The most certain proposals that a store holds of an image; base of the two kinds.

    They ride on `instances` (:func:`ovd_d2.structures.attach_cached_proposals`), as
    :func:`transform_cached_proposals` returns them.

    Attributes:
        store: records of every training image, but of those sets.
        per_image: at most so many proposals per image.
        except_sets: training sets whose images have no proposals.
    """

    def __init__(
        self, store: RecordStore, *, per_image: int, except_sets: Collection[str] = ()
    ) -> None:
        """See the attributes."""
        self.store = store
        self.per_image = per_image
        self.except_sets = frozenset(except_sets)

    def __call__(self, image: MappedImage) -> None:
        # Embeddings stay as stored, whatever their length: the loss normalises them.
        if self._is_stored(image.record):
            stored = self._best_first(self.store.read_undecoded(image.record["image_id"]))
        else:
            stored = self._nothing()
        proposals = transform_cached_proposals(stored, image.transforms, image.size, self.per_image)
        attach_cached_proposals(image.record, proposals)

    def _best_first(self, stored: dict[str, NDArray]) -> dict[str, NDArray]:
        return stored

    def _is_stored(self, record: Mapping[str, Any]) -> bool:
        return record.get(DATA_SET) not in self.except_sets

    def _nothing(self) -> dict[str, NDArray]:
        """The fields of an image without proposals."""
        return {"boxes": np.zeros((0, 4), np.float32)}

    def _stored_images(self, context: SetupContext) -> list[dict[str, Any]]:
        return [one for one in context.training_images if self._is_stored(one)]


class CachedProposals(StoredProposals):
    """Proposals of an `EmbeddingCache`, with the teacher's embeddings, for heads that distil."""

    def problems(self, context: SetupContext) -> list[str]:
        """A cache of another teacher, or of other images."""
        own = self.store.manifest.teacher
        return check_compatible(
            self.store,
            teacher_fingerprint=own if context.teacher is None else context.teacher,
            embedding_dim=context.embedding_dim,
            images=self._stored_images(context),
        )

    def _nothing(self) -> dict[str, NDArray]:
        width = self.store.manifest.embedding_dim
        return {**super()._nothing(), "embeddings": np.zeros((0, width), np.float32)}


class ProposalsToEmbed(StoredProposals):
    """Proposals of a `ProposalStore`, and the original image to embed them from.

    The batch then goes through :class:`ovd_d2.data.online.OnlineTeacherLoader`.
    """

    def __call__(self, image: MappedImage) -> None:
        super().__call__(image)
        image.record[ORIGINAL_IMAGE] = image.original_rgb()

    def _best_first(self, stored: dict[str, NDArray]) -> dict[str, NDArray]:
        """In the order in which the cache builder keeps them, so that the first K are the same."""
        order = np.argsort(-stored["objectness"], kind="stable")
        return {name: values[order] for name, values in stored.items()}

    def problems(self, context: SetupContext) -> list[str]:
        """Proposals of other images."""
        fix = "run tools/extract_proposals.py for the training data set"
        return coverage_problems(self.store, self._stored_images(context), fix)


class OriginalImage(Passenger):
    """The image before augmentation: `original_image`, (H, W, 3) uint8 RGB, of the input."""

    def __call__(self, image: MappedImage) -> None:
        image.record[ORIGINAL_IMAGE] = image.original_rgb()


def transform_cached_proposals(
    stored: Mapping[str, NDArray], transforms: T.Transform, image_size: tuple[int, int], top_k: int
) -> Instances:
    """Carries cached proposals through the image's augmentation.

    A proposal that leaves the image takes its embedding with it; the order stays. (Detectron2's
    own `transform_proposals` re-sorts and truncates boxes that come without embeddings.)
    Proposals that have no embedding yet take along where they are in the original image.

    Args:
        stored: fields of a record (:meth:`ovd_d2.cache.EmbeddingCache.read_undecoded`), the best
            of the K proposals first: `boxes` in the original image, `embeddings` unless from a
            proposal store; others are not looked at.
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
