"""How much example images of novel names should weigh beside their words, by AP on Pictograms."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from tabulate import tabulate
from torch import nn

from benchmarks.documents import Document, origin
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.clip.vocabulary_builder import EXAMPLE_WEIGHT, prompt_family, vocabulary_of_entries
from ovd_d2.data.any_image import as_rgb
from ovd_d2.data.categories import get_categories
from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.run import load_config
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.entries import Entry, Example
from ovd_d2.errors import SetupError
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part
from ovd_d2.vocabulary import Vocabulary, configured_vocabulary

WEIGHTS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
EXAMPLES = 5  # per novel name
SOURCE = "pictograms_v1_train_all"  # has boxes of novel categories
MEASURES = {"bbox/AP_novel": "novel", "bbox/AP50_novel": "novel, AP50", "bbox/AP_base": "base"}

Row = dict[str, Any]


def entries_with_examples(
    names: Sequence[Entry], dataset: str, count: int, seed: int = 0
) -> list[Entry]:
    """Novel entries with boxes of a data set as their examples, drawn by `seed`.

    Raises:
        SetupError: a novel name has no box there.
    """
    place = {name: k for k, name in enumerate(get_categories(dataset).names)}
    boxes: dict[int, list[Example]] = {}
    for record in DatasetCatalog.get(dataset):
        for one in record["annotations"]:
            x, y, width, height = one["bbox"]
            box = (x, y, x + width, y + height)
            boxes.setdefault(one["category_id"], []).append(Example(record["file_name"], box))
    draw = random.Random(seed)
    found = []
    for one in names:
        there = boxes.get(place.get(one.name, -1), [])
        if one.novel and not there:
            raise SetupError([f"'{dataset}' has no box of '{one.name}' for an example"])
        examples = tuple(draw.sample(there, min(count, len(there)))) if one.novel else ()
        found.append(replace(one, examples=examples))
    return found


def measure(
    training: Path,
    options: Sequence[str] = (),
    weights: Sequence[float] = WEIGHTS,
    examples: int = EXAMPLES,
    source: str = SOURCE,
) -> list[Row]:
    """A row per weight: AP, in percent, on the training's test set.

    Args:
        training: OUTPUT_DIR of a detector that compares text embeddings.
        options: config keys and their values in turn.
        weights: of the examples.
        examples: per novel name.
        source: data set of the examples.

    Raises:
        SetupError: no vocabulary, or no such training.
    """
    options = ["MODEL.WEIGHTS", str(training / "model_final.pth"), *options]
    cfg = load_config(str(training / "config.yaml"), options)
    known = configured_vocabulary(cfg)
    if known is None:
        raise SetupError([f"{training}: MODEL.OVD.VOCABULARY is empty: examples need embeddings"])
    novel = known.novel.tolist()
    entries = [Entry(name, novel=flag) for name, flag in zip(known.names, novel, strict=True)]
    entries = entries_with_examples(entries, source, examples)
    teacher = configured_teacher(cfg, device=cfg.MODEL.DEVICE)
    prompts = prompt_family(known, cfg.MODEL.OVD.TEACHER.PROMPTS)
    model = build_open_vocabulary_model(cfg)
    rows = []
    for weight in weights:
        vocabulary = vocabulary_of_entries(
            entries, teacher, as_rgb, prompts=prompts, example_weight=weight
        )
        rows.append({"weight": weight, **evaluated(cfg, model, vocabulary)})
    return rows


def evaluated(cfg: CfgNode, model: nn.Module, vocabulary: Vocabulary) -> Row:
    """AP of a model that looks for a vocabulary, in percent."""
    part = open_vocabulary_part(model)
    if part is None:
        raise SetupError([f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE} takes no names"])
    part.set_vocabulary(vocabulary)  # the evaluation looks for what the model holds
    cfg = cfg.clone()
    cfg.defrost()
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        return _percent(OpenVocabularyTrainer.test(cfg, model))


def _percent(results: dict[str, Any]) -> Row:
    found = {}
    for key in MEASURES:
        task, _, measure = key.partition("/")
        found[key] = round(float(results[task][measure]), 2)
    return found


def best_weight(rows: Sequence[Row]) -> float:
    """The weight of the highest AP of novel names."""
    return float(max(rows, key=lambda row: row["bbox/AP_novel"])["weight"])


def table_of(rows: Sequence[Row]) -> str:
    """In Markdown."""
    said = {0.0: "0, words alone", 1.0: "1, examples alone"}
    body = [
        [said.get(row["weight"], row["weight"]), *(row[key] for key in MEASURES)] for row in rows
    ]
    heads = ["weight of the examples", *MEASURES.values()]
    return tabulate(body, heads, tablefmt="pipe", colalign=("left", *["right"] * len(MEASURES)))


def page(document: Document) -> str:
    """The whole page, from what was measured."""
    rows = document["rows"]
    return f"""# Example images in numbers

{origin(document)}; numbers:
[results/examples.json](results/examples.json). Box AP on Pictograms, in percent. Each novel name
has {EXAMPLES} example boxes, drawn from scenes of the training set, whose novel boxes no training
has seen; base names have their words alone. The embedding of a name is
`(1 - weight) * words + weight * examples`.

{table_of(rows)}

The teacher has learnt these names; where it does not know a word, examples alone have something to
say. Best for novel names here: {best_weight(rows):g}. The default is {EXAMPLE_WEIGHT:g}.
"""
