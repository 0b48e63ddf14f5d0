"""Images with captions, and the phrases to look for in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from PIL import Image

from ovd_d2.data.registration import register_data_sets
from ovd_d2.errors import SetupError
from ovd_d2.files import read_text
from ovd_d2.projects.glip.grounding import CAPTION, EVALUATED, spans_problems
from ovd_d2.projects.glip.prompts.spans import Span

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


def images_of_data_set(name: str) -> list[CaptionedImage]:
    """Of a registered grounding set: its captions and the phrases of `tokens_positive_eval`.

    Its boxes are not looked at.

    Raises:
        SetupError: it has no captions, or spans that do not fit them.
    """
    register_data_sets([name])
    if name not in DatasetCatalog:
        raise SetupError([f"data set '{name}' is not registered"])
    images, problems = [], []
    for record in DatasetCatalog.get(name):
        caption, phrases = record.get(CAPTION), record.get(EVALUATED)
        if not isinstance(caption, str) or phrases is None:
            raise SetupError([f"'{name}': its images have no '{CAPTION}' with '{EVALUATED}'"])
        for spans in phrases:
            found = spans_problems(caption, spans)
            problems += [
                f"'{name}': image {record['image_id']}: {EVALUATED} {one}" for one in found
            ]
        images.append(_of_record(record))
    if problems:
        raise SetupError(problems)
    return images


def _of_record(record: dict[str, Any]) -> CaptionedImage:
    keys = ("image_id", "file_name", "height", "width", CAPTION)
    phrases = tuple(tuple((first, end) for first, end in one) for one in record[EVALUATED])
    return CaptionedImage(**{key: record[key] for key in keys}, phrases=phrases)


def images_of_folder(folder: Path, captions: Path) -> list[CaptionedImage]:
    """Of a folder of images and a text file with a line "FILE<TAB>a red anchor . two suns ." each.

    Raises:
        SetupError: lines that are none, images that are not there or cannot be read.
    """
    images, problems = [], []
    for number, line in enumerate(read_text(captions).splitlines(), 1):
        if not line.strip():
            continue
        file, tab, caption = line.partition("\t")
        where = f"{captions}: line {number}"
        phrases = phrases_of_list(caption)
        if not tab or not phrases:
            problems.append(f'{where}: expected "FILE<TAB>first phrase . second phrase ."')
            continue
        try:
            with Image.open(folder / file) as image:
                width, height = image.size
        except OSError as error:
            problems.append(f"{where}: {error}")
            continue
        path = str(folder / file)
        images.append(CaptionedImage(number, path, height, width, caption, phrases))
    if problems:
        raise SetupError(problems)
    return images
