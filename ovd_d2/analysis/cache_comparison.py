"""How alike the embeddings of two caches are, e.g. those of crops and those of a dense map."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ovd_d2.cache import CacheError, EmbeddingCache
from ovd_d2.vocabulary import Vocabulary

# COCO's: sides in pixels of the original image, as the root of the area.
SIZES = {"small": (0.0, 32.0), "medium": (32.0, 96.0), "large": (96.0, float("inf"))}
ALL = "all"
# Of `agreement_rows`.
HEADER: Sequence[str] = ("proposals", "number", "cosine", "with another", "same nearest name")


@dataclass(frozen=True)
class Agreement:
    """Of the proposals of one size.

    Attributes:
        proposals: how many.
        cosine: mean between the two embeddings of a proposal.
        chance: mean between the first embedding of a proposal and the second one of another
            proposal of the same image: what any two embeddings have in common. NaN where no image
            has two proposals.
        same_name: share of proposals whose nearest name is the same; None without a vocabulary.
    """

    proposals: int
    cosine: float
    chance: float
    same_name: float | None


def compare_caches(
    first: EmbeddingCache,
    second: EmbeddingCache,
    vocabulary: Vocabulary | None = None,
    *,
    progress: bool = False,
) -> dict[str, Agreement]:
    """Agreement over the proposals that both caches hold, in all and by their size.

    Their teachers may differ where they share a space: a refined ViT and its original.

    Args:
        vocabulary: names to compare the embeddings with.

    Returns:
        "all", "small", "medium", "large"; those that there are.

    Raises:
        CacheError: the caches have no image in common, other proposals, or other widths; the
            vocabulary is of none of the two teachers.
    """
    _check(first, second, vocabulary)
    names = None if vocabulary is None else vocabulary.embeddings
    ids = [image_id for image_id in first if image_id in second]
    if not ids:
        raise CacheError(f"{first.path} and {second.path} have no image in common")
    images = tqdm(ids, "compare", unit="image", disable=not progress)
    found = torch.cat([_compared(first, second, image_id, names) for image_id in images])
    if not len(found):
        raise CacheError(f"{first.path} and {second.path} hold no proposals of common images")
    return {name: _agreement(part, names is not None) for name, part in _parts(found)}


def agreement_rows(found: Mapping[str, Agreement]) -> list[list[str]]:
    """In words: size, proposals, cosine, chance, share of equal names."""
    return [
        [
            name,
            f"{one.proposals:,}",
            f"{one.cosine:.4f}",
            f"{one.chance:.4f}",
            "" if one.same_name is None else f"{one.same_name:.1%}",
        ]
        for name, one in found.items()
    ]


def _check(first: EmbeddingCache, second: EmbeddingCache, vocabulary: Vocabulary | None) -> None:
    widths = first.manifest.embedding_dim, second.manifest.embedding_dim
    if widths[0] != widths[1]:
        raise CacheError(
            f"embeddings of {first.path} are {widths[0]} wide, of {second.path} {widths[1]}: they "
            "do not compare"
        )
    teachers = first.manifest.teacher, second.manifest.teacher
    if vocabulary is not None and vocabulary.teacher not in teachers:
        raise CacheError(
            f"the vocabulary is of teacher '{vocabulary.teacher}', the caches are of "
            f"'{teachers[0]}' and '{teachers[1]}': name a vocabulary of one of them"
        )


def _compared(
    first: EmbeddingCache, second: EmbeddingCache, image_id: int, names: Tensor | None
) -> Tensor:
    """(K, 4) float32 of one image: side, cosine, cosine with another proposal, equal names."""
    records = first[image_id], second[image_id]
    if not torch.equal(records[0].boxes, records[1].boxes):
        raise CacheError(
            f"{first.path} and {second.path} have other proposals of image {image_id}: build both "
            "from the same proposals, with the same --top-k"
        )
    a, b = (F.normalize(_embeddings(one.embeddings), dim=1) for one in records)
    cosines = a @ b.T  # (K, K)
    own = cosines.diagonal()
    others = (cosines.sum(dim=1) - own) / (len(a) - 1) if len(a) > 1 else own * torch.nan
    same = torch.zeros_like(own)
    if names is not None and len(a):
        same = ((a @ names.T).argmax(dim=1) == (b @ names.T).argmax(dim=1)).float()
    x1, y1, x2, y2 = records[0].boxes.unbind(dim=1)
    return torch.stack([((x2 - x1) * (y2 - y1)).sqrt(), own, others, same], dim=1)


def _embeddings(stored: Tensor | None) -> Tensor:
    assert stored is not None  # an EmbeddingCache has them
    return stored.float()


def _parts(found: Tensor) -> Iterator[tuple[str, Tensor]]:
    yield ALL, found
    for name, (low, high) in SIZES.items():
        part = found[(found[:, 0] >= low) & (found[:, 0] < high)]
        if len(part):
            yield name, part


def _agreement(part: Tensor, named: bool) -> Agreement:
    _, cosine, chance, same = part.double().unbind(dim=1)
    same_name = float(same.mean()) if named else None
    return Agreement(len(part), float(cosine.mean()), float(chance.nanmean()), same_name)
