"""How detectors turn similarities into scores: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

BLOCK = 2**20  # (region, name) pairs scored at once
OBJECTNESS_KINDS = ("logit", "probability")


def best_of_words(similarities: Tensor, owners: Tensor, categories: int) -> Tensor:
    """Similarities to each category's best word, of several that mean it.

    Args:
        similarities: (N, W, ...) to words.
        owners: (W,) int64, which category each word is.
        categories: C.

    Returns:
        (N, C, ...).
    """
    count, _, *others = similarities.shape
    best = similarities.new_full((count, categories, *others), -torch.inf)
    columns = owners.reshape(1, -1, *(1 for _ in others)).expand_as(similarities)
    return best.scatter_reduce(1, columns, similarities, "amax", include_self=False)


def text_probabilities(logits: Tensor) -> Tensor:
    """Text-branch scores: softmax over all categories and background, background dropped.

    Args:
        logits: (N, C + 1) similarities over temperature, background last.

    Returns:
        (N, C) float32.
    """
    return F.softmax(logits.float(), dim=1)[:, :-1]


def image_probabilities(
    region_embeddings: Tensor,
    text_embeddings: Tensor,
    temperature: float | Tensor,
    background: Tensor | None = None,
    best: Callable[[Tensor], Tensor] = lambda similarities: similarities,
) -> Tensor:
    """Image-branch scores: softmax over the categories, as ViLD's alone, or with background.

    Args:
        region_embeddings, text_embeddings, temperature: see :func:`image_logits`.
        background: (D,) unit embedding that takes part in the softmax, dropped afterwards.
        best: (N, W + B) similarities to words and background -> (N, C + B) to categories, where
            several words are one category (`Words.best`).

    Returns:
        (N, C) float32 (under autocast, too); rows sum to 1, with a background to less.
    """
    if background is None:
        logits = image_logits(region_embeddings, text_embeddings, temperature)
        return F.softmax(best(logits), dim=1)
    words = torch.cat([text_embeddings, background[None].to(text_embeddings)])
    return text_probabilities(best(image_logits(region_embeddings, words, temperature)))


def image_logits(
    region_embeddings: Tensor, text_embeddings: Tensor, temperature: float | Tensor
) -> Tensor:
    """What :func:`image_probabilities` are the softmax of.

    Args:
        region_embeddings: (N, D) unit rows.
        text_embeddings: (C, D) unit rows.
        temperature: divides the cosine similarity (ViLD: 0.01).

    Returns:
        (N, C) float32 (under autocast, too).
    """
    with torch.autocast(text_embeddings.device.type, enabled=False):
        similarity = region_embeddings.float() @ text_embeddings.float().t()  # (N, C)
    return similarity.div_(temperature)


def vild_ensemble(
    text_probs: Tensor,
    image_probs: Tensor,
    is_novel: Tensor,
    base_weight: float = 2 / 3,
    novel_weight: float | None = None,
) -> Tensor:
    """Weighted geometric mean of both branches (ViLD, section 3.4, equation 6).

    `text^w * image^(1-w)`. Base categories trust the text branch; novel ones, which the text
    branch has never been trained on, the image branch.

    Args:
        text_probs, image_probs: (N, C).
        is_novel: (C,) bool.
        base_weight: w of base categories, in [0, 1].
        novel_weight: w of novel categories, in [0, 1]; None means `1 - base_weight` (the paper).
            Both equal: one weight for all, as where no category was trained on (transfer).

    Returns:
        (N, C).
    """
    if novel_weight is None:
        novel_weight = 1.0 - base_weight
    for name, weight in (("base_weight", base_weight), ("novel_weight", novel_weight)):
        if not 0.0 <= weight <= 1.0:
            raise ValueError(f"{name} must lie in [0, 1], got {weight}")
    text_weight = torch.where(is_novel, novel_weight, base_weight).to(text_probs)  # (C,)
    logarithms = _weighted_log(text_probs, text_weight)
    return logarithms.add_(_weighted_log(image_probs, 1.0 - text_weight)).exp_()


def _weighted_log(probs: Tensor, weight: Tensor) -> Tensor:
    """`log(probs^weight)`: two logarithms and one exponential take a third of two powers' time."""
    lowest = torch.finfo(probs.dtype).min  # of 0, whose power with weight 0 is 1
    return probs.log().clamp_(min=lowest).mul_(weight)


def in_blocks(score: Callable[..., Tensor], *rows: Tensor, into: Tensor) -> Tensor:
    """`score(*rows)` of some regions at a time: what it needs on the way stays small.

    A mean of two branches over 20,000 names takes four tensors as large as its result.

    Args:
        score: takes tensors of n rows each and gives (n, C), each row from its own rows.
        rows: tensors of N rows each.
        into: (N, C), what the scores are written into; may be one of `rows`.

    Returns:
        `into`.
    """
    if torch.jit.is_tracing():  # the number of blocks would be that of this one table
        return score(*rows)
    regions, names = into.shape
    step = max(1, BLOCK // max(1, names))
    for start in range(0, regions, step):
        part = slice(start, start + step)
        into[part] = score(*(one[part] for one in rows))
    return into


def objectness_probabilities(scores: Tensor, kind: str) -> Tensor:
    """Objectness of proposals as probabilities, whatever the proposal generator gives.

    Args:
        scores: (N,) float, what Detectron2 calls `objectness_logits`.
        kind: "logit" (Detectron2's RPN), or "probability" (CenterNet, under the same name).

    Returns:
        (N,) in [0, 1].

    Raises:
        ValueError: another kind; probabilities outside of [0, 1].
    """
    if kind == "logit":
        return scores.sigmoid()
    if kind != "probability":
        raise ValueError(f"objectness must be one of {OBJECTNESS_KINDS}, got '{kind}'")
    outside = scores[(scores < 0) | (scores > 1)]
    if len(outside):
        raise ValueError(
            f"{len(outside)} of {len(scores)} objectness probabilities are outside of [0, 1], "
            f"first {float(outside[0]):.4g}: the proposal generator gives logits, set "
            'MODEL.OVD.OBJECTNESS to "logit"'
        )
    return scores


def mix_objectness(probs: Tensor, objectness: Tensor, weight: float) -> Tensor:
    """Weighted geometric mean of category scores and objectness, `p^(1-weight) * o^weight`.

    Scores without a background class (ViLD-image, CLIP on crops) need it to rank proposals; 0.5
    is the plain geometric mean, 0 leaves the scores as they are.

    Args:
        probs: (N, C).
        objectness: (N,) probabilities in [0, 1].
        weight: in [0, 1].

    Returns:
        (N, C).
    """
    return probs ** (1.0 - weight) * objectness[:, None] ** weight
