"""Whether a box shows what a detector says: the teacher classifies its crop."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ovd_d2.clip.crops import embed_proposals
from ovd_d2.clip.teacher import CLIPTeacher
from ovd_d2.scoring import best_of_words, image_probabilities
from ovd_d2.vocabulary import Vocabulary


def crop_scores(
    image: NDArray[np.uint8],
    boxes: Tensor,
    classes: Tensor,
    vocabulary: Vocabulary,
    teacher: CLIPTeacher,
) -> Tensor:
    """The teacher's probability that the crop of each box shows its name.

    Two crops per box, as in ViLD: 1x and 1.5x.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (K, 4) float XYXY in pixels of `image`.
        classes: (K,) int64, the name of each box.
        vocabulary: C names, which share out the probability.
        teacher: whose text embeddings those of the vocabulary are; its own temperature counts.

    Returns:
        (K,) float32 on the CPU.
    """
    best = partial(best_of_words, owners=vocabulary.owners, categories=len(vocabulary))
    seen = embed_proposals(image, boxes, teacher)
    of_names = image_probabilities(seen, vocabulary.word_embeddings, teacher.temperature, best=best)
    return of_names.gather(1, classes[:, None])[:, 0]
