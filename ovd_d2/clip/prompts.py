"""Prompt families and the category text embeddings made with them.

The procedure is ViLD's (Gu et al., arXiv 2104.13921, section 3.2): every category name, and every
synonym where a data set lists some, is put into each template of a family; the text embeddings of
one category are L2-normalised, averaged and normalised again. The wording of the templates is this
project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tqdm import tqdm

from ovd_d2.clip.teacher import CLIPTeacher

_VIEWS = (
    "there is {article} {name} in this scene.",
    "there is {article} {name} somewhere in the picture.",
    "there is one {name} among other things.",
    "we can see {article} {name} here.",
    "we can see part of {article} {name} here.",
    "this scene contains {article} {name}.",
    "in this picture {article} {name} lies next to something else.",
    "{article} {name} in front of a busy background.",
    "{article} {name} on a plain background.",
    "{article} {name} at the edge of the picture.",
    "{article} {name} in the middle of the picture.",
    "{article} {name} partly hidden by another object.",
    "{article} {name} seen from far away.",
    "{article} {name} seen from nearby.",
    "{article} {name} seen from above.",
    "{article} {name} seen from the side.",
    "{article} {name} turned to one side.",
    "{article} {name} upside down.",
)
_PHOTOS = (
    "a photo of {article} {name}.",
    "a photo of the {name}.",
    "a photo of one {name}.",
    "a photo of {article} {name} in its usual place.",
    "a photo of {article} {name} in a crowded scene.",
    "a snapshot of {article} {name}.",
    "a phone picture of {article} {name}.",
    "a studio photo of {article} {name}.",
    "a holiday photo with {article} {name}.",
    "a news photo showing {article} {name}.",
    "a black and white photo of {article} {name}.",
    "a colour photo of {article} {name}.",
    "a sharp photo of {article} {name}.",
    "a blurred photo of {article} {name}.",
    "a grainy photo of {article} {name}.",
    "a photo of {article} {name} in low resolution.",
    "a heavily compressed picture of {article} {name}.",
    "a tightly cropped picture of {article} {name}.",
    "a badly cropped picture of {article} {name}.",
    "a tilted photo of {article} {name}.",
    "a photo of {article} {name} in the shade.",
    "a photo of {article} {name} in bright light.",
    "a photo of {article} {name} at night.",
    "a nice picture of {article} {name}.",
    "a poor picture of {article} {name}.",
)
_KINDS = (
    "a small {name}.",
    "a big {name}.",
    "a tiny {name} in a wide picture.",
    "a huge {name} filling the picture.",
    "a clean {name}.",
    "a worn {name}.",
    "a strange {name}.",
    "an ordinary {name}.",
    "a colourful {name}.",
    "a dark {name}.",
)
_DEPICTIONS = (
    "a drawing of {article} {name}.",
    "a sketch of {article} {name}.",
    "a painting of {article} {name}.",
    "a cartoon of {article} {name}.",
    "a computer rendering of {article} {name}.",
    "an icon of {article} {name}.",
    "a printed sign with {article} {name}.",
    "a toy version of {article} {name}.",
    "the outline of {article} {name}.",
    "a picture of something called {article} {name}.",
)

PROMPT_FAMILIES: dict[str, tuple[str, ...]] = {
    "vild63": _VIEWS + _PHOTOS + _KINDS + _DEPICTIONS,
    "clip7": (
        "a photo of {article} {name}.",
        "a poor picture of the {name}.",
        "a picture of a big {name}.",
        "a picture of a small {name}.",
        "a phone snapshot of {article} {name}.",
        "a drawing of the {name}.",
        "{article} {name} rendered by a computer.",
    ),
    "single": ("a photo of {article} {name}.",),
}
"""Templates by family name: 63 as in ViLD, 7 as in CLIP's short ensembles, and 1."""

_LEADING_ARTICLES = ("a", "an", "the")


def clean_name(name: str) -> str:
    """The words of a category name: `_` -> space, `/` -> "or", lower case, single spaces."""
    words = name.replace("_", " ").replace("/", " or ").lower()
    return " ".join(words.split())


def article(name: str) -> str:
    """The indefinite article of a name, chosen by its first letter."""
    return "an" if name[:1].lower() in tuple("aeiou") else "a"


def render_prompts(name: str, family: str = "vild63") -> list[str]:
    """The sentences of one category.

    "This is" goes before a sentence that starts with an article, so that every prompt is a whole
    sentence (as in ViLD's code).

    Args:
        name: category name, in the data set's spelling.
        family: key of `PROMPT_FAMILIES`.

    Raises:
        ValueError: unknown family, or a name without any word.
    """
    if family not in PROMPT_FAMILIES:
        known = ", ".join(sorted(PROMPT_FAMILIES))
        raise ValueError(f"unknown prompt family '{family}'; known families: {known}")
    words = clean_name(name)
    if not words:
        raise ValueError(f"category name {name!r} is empty after cleaning; give it a word")
    return [_render(template, words) for template in PROMPT_FAMILIES[family]]


def _render(template: str, words: str) -> str:
    sentence = template.format(article=article(words), name=words)
    if sentence.split(" ", 1)[0] in _LEADING_ARTICLES:
        return f"This is {sentence}"
    return sentence[0].upper() + sentence[1:]


def embed_names(
    names: Sequence[str],
    teacher: CLIPTeacher,
    family: str = "vild63",
    *,
    batch_size: int = 1024,
    progress: bool = False,
) -> torch.Tensor:
    """Category text embeddings: normalise each prompt's embedding, average, normalise.

    Args:
        names: C category names.
        teacher: its text encoder is used.
        family: key of `PROMPT_FAMILIES`.
        batch_size: sentences encoded at once; at least one category goes into a batch.
        progress: show a progress bar.

    Returns:
        (C, D) float32 unit rows on the CPU; C = 0 gives (0, D).
    """
    groups = [[name] for name in names]
    return embed_synonyms(groups, teacher, family, batch_size=batch_size, progress=progress)


def embed_synonyms(
    synonyms: Sequence[Sequence[str]],
    teacher: CLIPTeacher,
    family: str = "vild63",
    *,
    batch_size: int = 1024,
    progress: bool = False,
) -> torch.Tensor:
    """The same over all prompts of all synonyms of a category.

    Args:
        synonyms: C categories, one or more names each.
        teacher, family, batch_size, progress: as :func:`embed_names`.

    Returns:
        (C, D) float32 unit rows on the CPU.

    Raises:
        ValueError: a category without a name.
    """
    counts = [len(group) for group in synonyms]
    if 0 in counts:
        raise ValueError(f"category {counts.index(0)} has no name")
    flat = [name for group in synonyms for name in group]
    means = _prompt_means(flat, teacher, family, batch_size, progress)
    # Every name has equally many prompts: the mean of their means is the mean of all.
    groups = [part.mean(dim=0, keepdim=True) for part in means.split(counts)]
    return F.normalize(torch.cat(groups), dim=1) if groups else means


def _prompt_means(
    names: Sequence[str], teacher: CLIPTeacher, family: str, batch_size: int, progress: bool
) -> torch.Tensor:
    """(C, D): the mean of each name's normalised prompt embeddings, not normalised itself."""
    prompts = [render_prompts(name, family) for name in names]
    if not prompts:
        return torch.zeros(0, teacher.embedding_dim)
    per_batch = max(1, batch_size // len(prompts[0]))
    means = []
    with tqdm(total=len(prompts), desc="text embeddings", unit="name", disable=not progress) as bar:
        for start in range(0, len(prompts), per_batch):
            group = prompts[start : start + per_batch]
            flat = [sentence for sentences in group for sentence in sentences]
            embeddings = teacher.encode_text(flat).cpu()  # (B * T, D) unit rows
            means.append(embeddings.view(len(group), -1, embeddings.shape[1]).mean(dim=1))
            bar.update(len(group))
    return torch.cat(means)
