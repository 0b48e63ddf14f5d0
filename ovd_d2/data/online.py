"""Training without a cache: the teacher embeds the proposals of each batch on its way to the model.

What comes out is what a mapper with an :class:`ovd_d2.cache.EmbeddingCache` gives, so model and
losses do not know the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from ovd_d2.structures import ORIGINAL_IMAGE, cached_proposals_of

Embed = Callable[[NDArray[np.uint8], torch.Tensor], torch.Tensor]
Batch = list[dict[str, Any]]


@runtime_checkable
class Resumable(Protocol):
    """What a checkpoint asks of the objects whose state it holds."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class OnlineTeacherLoader:
    """Batches of a training loader, each with the teacher's embeddings of its proposals.

    It runs in the training process, where the teacher's device is; reading and augmenting stay
    with the loader's workers. Each process of a distributed training embeds its own images. The
    time it takes is in Detectron2's `data_time`.
    """

    def __init__(self, loader: Iterable[Batch], embed: Embed) -> None:
        """
        Args:
            loader: batches of a mapper with the passenger
                :class:`ovd_d2.data.passengers.ProposalsToEmbed`.
            embed: (H, W, 3) uint8 RGB and (K, 4) float32 boxes in its pixels -> (K, D) float32
                unit rows, e.g. :func:`ovd_d2.clip.crops.embed_proposals` of a teacher.
        """
        self.loader = loader
        self.embed = embed

    def state_dict(self) -> dict[str, Any]:
        """Of the loader below, where it can be resumed: the teacher draws nothing."""
        return self.loader.state_dict() if is_resumable(self.loader) else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state and is_resumable(self.loader):
            self.loader.load_state_dict(state)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.loader:
            for record in batch:
                add_embeddings(record, self.embed)
            yield batch


def is_resumable(loader: Any) -> TypeGuard[Resumable]:
    """Whether a checkpoint can hold the place of a training loader."""
    return isinstance(loader, Resumable)


def add_embeddings(record: dict[str, Any], embed: Embed) -> None:
    """Turns the mapper's `original_image` and `original_boxes` into `teacher_embeddings`.

    Raises:
        FloatingPointError: the teacher returned NaN or infinity; the image is named.
    """
    image, proposals = record.pop(ORIGINAL_IMAGE), cached_proposals_of(record["instances"])
    if proposals is None:
        raise ValueError(f"image {record['image_id']}: the mapper gave it no proposals to embed")
    embeddings = embed(image.numpy(), proposals.original_boxes.tensor)
    if not torch.isfinite(embeddings).all():
        raise FloatingPointError(
            f"image {record['image_id']} ({record['file_name']}): the teacher's embeddings of its "
            "proposals hold NaN or infinity; look at the teacher's weights"
        )
    proposals.remove("original_boxes")
    proposals.teacher_embeddings = embeddings
