"""How an evaluation asks for names, for every place where its numbers are shown."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from ovd_d2.data.categories import get_categories
from ovd_d2.projects.glip.prompts import MAX_TOKENS, load_tokenizer
from ovd_d2.projects.glip.prompts.chunks import chunks_of
from ovd_d2.projects.glip.prompts.detection import phrases_of, with_phrases

_SHOWN = 100  # characters of a caption


def evaluation_settings(cfg: CfgNode, dataset_name: str) -> dict[str, str]:
    """The captions of the names of a detection set.

    Raises:
        SetupError: there is no tokenizer.
        ValueError: a name, or so many, are longer than a caption may be.
    """
    glip = cfg.MODEL.GLIP
    names = with_phrases(get_categories(dataset_name).names, phrases_of(glip.PROMPTS.PHRASES))
    chunks = chunks_of(names, load_tokenizer(glip.TOKENIZER), glip.NAMES_PER_CAPTION)
    return {
        "names per caption": names_per_caption(glip.NAMES_PER_CAPTION),
        **captions_shown([one.prompt.caption for one in chunks]),
    }


def names_per_caption(number: int) -> str:
    """`MODEL.GLIP.NAMES_PER_CAPTION` in words."""
    return str(number) if number else f"as many as {MAX_TOKENS} tokens hold"


def captions_shown(captions: Sequence[str]) -> dict[str, str]:
    """How many they are, and the beginning of the first."""
    if not captions:
        return {"captions": "0"}
    first = captions[0] if len(captions[0]) <= _SHOWN else f"{captions[0][:_SHOWN]}..."
    return {"captions": str(len(captions)), "first caption": first}
