"""Where pseudo labels are kept: shards that are whole or absent, joined into one annotation file.

OUTPUT/run.json             what they are made of: settings, and a fingerprint of the images
OUTPUT/shards/00000.json    the entries of some images
OUTPUT/pseudo_labels.json   all of them in MDETR's layout
OUTPUT/data_set.yaml        names it as the data set "pseudo_labels", for a config's `DATASETS.OWN`
OUTPUT/statistics.json
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from ovd_d2.errors import SetupError
from ovd_d2.files import atomic_write, atomic_write_json, fingerprint_json
from ovd_d2.projects.glip.grounding import CAPTION, SPANS
from ovd_d2.projects.glip.last_words import last_words, singular
from ovd_d2.projects.glip.pseudo_labels.captions import CaptionedImage

LABELS, STATISTICS, RUN = "pseudo_labels.json", "statistics.json", "run.json"
DATA_SET_FILE, DATA_SET = "data_set.yaml", "pseudo_labels"
# paths of images are whole, or of the folder that the tool was started in
_DATA_SET = f"{DATA_SET}:\n  json_file: {LABELS}\n  image_root: {{root}}\n"
_NO_WORD = "object"  # category of phrases such as "+"
_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Settings:
    """What labels depend on beside the images.

    Attributes:
        teacher: what made them, e.g. the SHA-256 of its weights and a fingerprint of its config.
        threshold: boxes that score above it are kept.
        phrase_threshold: the best box of a phrase is kept if it scores above this.
        shard_size: images per shard.
    """

    teacher: str
    threshold: float = 0.5
    phrase_threshold: float = 0.5
    shard_size: int = 100


class LabelRun:
    """The folder of one run; the same command goes on where it was stopped, however it was.

    Attributes:
        folder: of the files.
        settings: see there.
    """

    def __init__(self, folder: Path, images: Sequence[CaptionedImage], settings: Settings) -> None:
        """
        Args:
            folder: new, or of this very run.
            images: all of them.
            settings: see there.
        """
        self.folder = folder
        self.settings = settings
        self._count = len(images)
        self._images = fingerprint_json([asdict(one) for one in images])

    @property
    def shards(self) -> int:
        """How many there will be."""
        return -(-self._count // self.settings.shard_size)

    def start(self) -> None:
        """
        Raises:
            SetupError: the folder is of another run.
        """
        wanted = {**asdict(self.settings), "images": self._count, "fingerprint": self._images}
        path = self.folder / RUN
        if not path.exists():
            atomic_write_json(path, wanted)
            return
        try:
            found = orjson.loads(path.read_bytes())
        except orjson.JSONDecodeError as error:
            raise SetupError([f"{path} cannot be read ({error}): name another folder"]) from error
        other = [key for key in wanted if found.get(key) != wanted[key]]
        if other:
            key = other[0]
            raise SetupError(
                [
                    f"{path}: these labels have {key} {found.get(key)!r}, this run has "
                    f"{wanted[key]!r}: name another folder, or delete this one"
                ]
            )

    def path_of(self, number: int) -> Path:
        return self.folder / "shards" / f"{number:05d}.json"

    def images_of_shard(self, number: int) -> range:
        """Places of its images."""
        first = number * self.settings.shard_size
        return range(first, min(first + self.settings.shard_size, self._count))

    def missing(self, rank: int = 0, count: int = 1) -> list[int]:
        """The shards of a rank that are not there yet."""
        own = range(rank, self.shards, count)
        return [one for one in own if not self.path_of(one).exists()]

    def write(self, number: int, entries: Sequence[dict[str, Any]]) -> None:
        """A shard, whole or not at all."""
        with atomic_write(self.path_of(number)) as temporary:
            temporary.write_bytes(orjson.dumps(list(entries)))

    def entries(self) -> Iterator[dict[str, Any]]:
        """Those of all shards.

        Raises:
            SetupError: a shard is missing, damaged, or has another number of images.
        """
        for number in range(self.shards):
            path = self.path_of(number)
            try:
                found = orjson.loads(path.read_bytes())
            except (OSError, orjson.JSONDecodeError) as error:
                raise SetupError(
                    [f"{path}: {error}; delete it and run the same command again"]
                ) from error
            if len(found) != len(self.images_of_shard(number)):
                raise SetupError(
                    [
                        f"{path} has {len(found)} images, expected "
                        f"{len(self.images_of_shard(number))}: delete it and run the same command "
                        "again"
                    ]
                )
            yield from found

    def join(self) -> dict[str, Any]:
        """Writes the annotation file and the statistics, and returns these."""
        entries = list(self.entries())
        table = annotation_file(entries)
        with atomic_write(self.folder / LABELS) as temporary:
            temporary.write_bytes(orjson.dumps(table))
        with atomic_write(self.folder / DATA_SET_FILE) as temporary:
            root = json.dumps(os.getcwd())
            temporary.write_text(_DATA_SET.format(root=root), encoding="utf-8")
        statistics = {**asdict(self.settings), **statistics_of(entries)}
        atomic_write_json(self.folder / STATISTICS, statistics)
        return statistics


def annotation_file(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All entries in MDETR's layout; images without a box are left out, as in the paper.

    A box's category is the last word of its phrase, by which a sampler knows what is rare.
    """
    labelled = [one for one in entries if one["annotations"]]
    keys = ("file_name", "height", "width", CAPTION)
    images = [{"id": one["image_id"], **{key: one[key] for key in keys}} for one in labelled]
    boxes = [(one, box) for one in labelled for box in one["annotations"]]
    words = [next(iter(last_words([_phrase(*one)])), _NO_WORD) for one in boxes]
    known = set(words)
    names = [singular(one, known) for one in words]
    numbers = {name: number for number, name in enumerate(sorted(set(names)), 1)}
    objects = [
        {
            "image_id": one["image_id"],
            "category_id": numbers[name],
            "iscrowd": 0,
            "area": box["bbox"][2] * box["bbox"][3],
            **box,
        }
        for (one, box), name in zip(boxes, names, strict=True)
    ]
    return {
        "images": images,
        "annotations": [{"id": number, **one} for number, one in enumerate(objects, 1)],
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
    }


def _phrase(entry: dict[str, Any], box: dict[str, Any]) -> str:
    return " ".join(entry[CAPTION][first:end] for first, end in box[SPANS])


def statistics_of(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts of images, boxes and phrases, and quantiles of the scores."""
    boxes = [(one, box) for one in entries for box in one["annotations"]]
    phrases = [
        tuple(one[CAPTION][first:end].lower() for first, end in box[SPANS]) for one, box in boxes
    ]
    scores = [box["score"] for _, box in boxes]
    quantiles = np.quantile(scores, _QUANTILES).round(4).tolist() if scores else []
    return {
        "images": len(entries),
        "images_without_boxes": sum(not one["annotations"] for one in entries),
        "boxes": len(boxes),
        "unique_phrases": len(set(phrases)),
        "score_quantiles": dict(zip(map(str, _QUANTILES), quantiles, strict=False)),
    }
