"""The variants of ViLD: what each one trains and how it scores."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Variant:
    """What a variant of ViLD trains and how it scores.

    Attributes:
        classifies: the text branch is trained by cross-entropy.
        distils: the image branch is trained to match the teacher.
        separate_heads: the image branch has a trunk and projection of its own.
        scores: "text", "image" or "ensemble".
    """

    classifies: bool
    distils: bool
    separate_heads: bool
    scores: str


VARIANTS = {
    "vild_text": Variant(classifies=True, distils=False, separate_heads=False, scores="text"),
    "vild_image": Variant(classifies=False, distils=True, separate_heads=False, scores="image"),
    "vild": Variant(classifies=True, distils=True, separate_heads=False, scores="text"),
    "vild_ensemble": Variant(classifies=True, distils=True, separate_heads=True, scores="ensemble"),
}


def get_variant(name: str) -> Variant:
    """The variant of that name; a KeyError lists the known ones."""
    if name not in VARIANTS:
        raise KeyError(f"MODEL.VILD.VARIANT must be one of {', '.join(VARIANTS)}; got '{name}'")
    return VARIANTS[name]
