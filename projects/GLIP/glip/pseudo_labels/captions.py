"""Images with captions, and the phrases to look for in them."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from detectron2.data import DatasetCatalog
from PIL import Image

from ovd_d2.data.registration import register_data_sets
from ovd_d2.errors import SetupError
from ovd_d2.files import read_text
from ovd_d2.projects.glip.grounding import CAPTION, EVALUATED, spans_problems
from ovd_d2.projects.glip.prompts.spans import Span
from ovd_d2.projects.glip.pseudo_labels.noun_phrases import noun_phrases

logger = logging.getLogger(__name__)

# A caption -> the character spans of each of its phrases.
Finder: TypeAlias = Callable[[str], tuple[tuple[Span, ...], ...]]
_NAME = re.compile(r"[^.\s][^.]*")


@dataclass(frozen=True)
class CaptionedImage:
    """An image that has no boxes yet.

    Attributes:
        image_id: of the data set, or its place in the list.
        file_name: path of the image.
        height, width: of the image, pixels.
        caption: its text.
        phrases: of each the character spans in `caption`.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    caption: str
    phrases: tuple[tuple[Span, ...], ...]


def phrases_of_list(caption: str) -> tuple[tuple[Span, ...], ...]:
    """The spans of "a red anchor . two suns ." as two phrases: what stands between full stops."""
    found = []
    for match in _NAME.finditer(caption):
        end = match.start() + len(match[0].rstrip())
        found.append(((match.start(), end),))
    return tuple(found)


# Name -> how phrases are found in a caption.
FINDERS: dict[str, Finder] = {"list": phrases_of_list, "english": noun_phrases}


def with_phrases(images: Sequence[CaptionedImage], find: Finder) -> list[CaptionedImage]:
    """The images with phrases that are found in their captions; those without any are left out."""
    found = [replace(one, phrases=find(one.caption)) for one in images]
    kept = [one for one in found if one.phrases]
    if len(kept) < len(found):
        logger.warning("%d of %d captions name nothing", len(found) - len(kept), len(found))
    return kept


def images_of_data_set(name: str, find: Finder | None = None) -> list[CaptionedImage]:
    """Of a registered grounding set: its captions and the phrases of `tokens_positive_eval`.

    Its boxes are not looked at.

    Args:
        name: of the set.
        find: finds the phrases in a caption; None: those of the set.

    Raises:
        SetupError: it has no captions, or spans that do not fit them.
    """
    register_data_sets([name])
    if name not in DatasetCatalog:
        raise SetupError([f"data set '{name}' is not registered"])
    images, problems = [], []
    for record in DatasetCatalog.get(name):
        caption = record.get(CAPTION)
        phrases = record.get(EVALUATED) if find is None else ()
        if not isinstance(caption, str) or phrases is None:
            wanted = f" with '{EVALUATED}'" if find is None else ""
            raise SetupError([f"'{name}': its images have no '{CAPTION}'{wanted}"])
        for spans in phrases:
            found = spans_problems(caption, spans)
            problems += [
                f"'{name}': image {record['image_id']}: {EVALUATED} {one}" for one in found
            ]
        images.append(_of_record(record, phrases))
    if problems:
        raise SetupError(problems)
    return images if find is None else with_phrases(images, find)


def _of_record(record: dict[str, Any], phrases: Sequence[Any]) -> CaptionedImage:
    keys = ("image_id", "file_name", "height", "width", CAPTION)
    spans = tuple(tuple((first, end) for first, end in one) for one in phrases)
    return CaptionedImage(**{key: record[key] for key in keys}, phrases=spans)


def images_of_folder(
    folder: Path, captions: Path, find: Finder = phrases_of_list
) -> list[CaptionedImage]:
    """Of a folder of images and a text file with a line "FILE<TAB>a red anchor . two suns ." each.

    Args:
        folder: of the images.
        captions: the text file.
        find: finds the phrases in a caption.

    Raises:
        SetupError: lines that are none, images that are not there or cannot be read.
    """
    images, problems = [], []
    for number, line in enumerate(read_text(captions).splitlines(), 1):
        if not line.strip():
            continue
        file, tab, caption = line.partition("\t")
        where = f"{captions}: line {number}"
        if not tab or not caption.strip():
            problems.append(f'{where}: expected "FILE<TAB>first phrase . second phrase ."')
            continue
        try:
            with Image.open(folder / file) as image:
                width, height = image.size
        except OSError as error:
            problems.append(f"{where}: {error}")
            continue
        path = str(folder / file)
        images.append(CaptionedImage(number, path, height, width, caption, ()))
    if problems:
        raise SetupError(problems)
    return with_phrases(images, find)
