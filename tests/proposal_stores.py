"""A proposal store and the float32 cache that a teacher makes of it, for comparing the two."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.data.detection_utils import read_image

from ovd_d2.cache import DatasetInfo, Manifest, ProposalStore, RecordWriter, dataset_fingerprint
from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.data.online import Embed
from ovd_d2.vild.online_teacher import OnlineTeacher

DATASET = "toy_train"


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of every file in a folder, by its path inside the folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def random_proposals(
    count: int, height: int, width: int, seed: int, smallest: float = 4.0
) -> dict[str, torch.Tensor]:
    """`count` boxes inside the image, best objectness first."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height], dtype=torch.float32)
    sides = smallest + torch.rand(count, 2, generator=generator) * (size / 2 - smallest)
    corners = torch.rand(count, 2, generator=generator) * (size - sides)
    objectness = torch.rand(count, generator=generator).sort(descending=True).values
    return {"boxes": torch.cat([corners, corners + sides], dim=1), "objectness": objectness}


def write_proposals(
    path: Path,
    dicts: Sequence[Mapping[str, Any]],
    tensors: Mapping[int, Mapping[str, torch.Tensor]],
    *,
    dataset: str = DATASET,
) -> ProposalStore:
    """The tensors of each image of `dicts`."""
    info = DatasetInfo(dataset, dataset_fingerprint(dicts), len(dicts))
    manifest = Manifest(kind="proposals", dataset=info, proposals="p" * 16)
    with RecordWriter(path, manifest, images=dicts) as writer:
        for entry in dicts:
            writer.add(entry["image_id"], tensors[entry["image_id"]])
        writer.finish()
    return ProposalStore(path)


def write_cache(
    path: Path,
    dicts: Sequence[Mapping[str, Any]],
    proposals: ProposalStore,
    teacher: CLIPTeacher,
) -> Path:
    """What the teacher says of all proposals of the original images, unrounded."""
    manifest = Manifest(
        kind="embeddings",
        dataset=proposals.manifest.dataset,
        proposals=proposals.fingerprint,
        teacher=teacher.fingerprint,
        embedding_dim=teacher.embedding_dim,
        dtype="float32",
    )
    with RecordWriter(path, manifest, images=dicts) as writer:
        for entry in dicts:
            found = proposals[entry["image_id"]]
            image = read_image(entry["file_name"], "RGB")
            embeddings = embed_proposals(image, found.boxes, teacher)
            tensors = {"boxes": found.boxes, "objectness": found.objectness}
            writer.add(entry["image_id"], {**tensors, "embeddings": embeddings})
        writer.finish()
    return path


def embedder(teacher: CLIPTeacher, **options: Any) -> Embed:
    """What the teacher inside training does with an image and its boxes."""
    return OnlineTeacher(teacher, **options).embed
