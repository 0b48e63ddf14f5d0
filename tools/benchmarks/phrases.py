"""GLIP on Pictograms: recall of the phrases of captions, and which colour an object is given."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from numpy.typing import NDArray
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from benchmarks.documents import Document, origin
from benchmarks.tables import orderings_table, reasons_of, spread
from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.run import load_config
from ovd_d2.engine.trainer import OpenVocabularyTrainer
from ovd_d2.pictograms.dataset import COLOURS
from ovd_d2.pictograms.showcase import Method, Ordering
from ovd_d2.pictograms.steps import VAL_SET, Run
from ovd_d2.predictor import OpenVocabularyPredictor
from ovd_d2.projects.glip.evaluation.flickr_recall import IOU, TASK, overlaps
from ovd_d2.projects.glip.grounding import CAPTION, SPANS
from ovd_d2.projects.glip.showcase import SHOWCASE, STUDENT, TEACHER

METHODS = [*SHOWCASE.select(SHOWCASE.demo_table), TEACHER, STUDENT]
CAPTIONS = VAL_SET.replace("_val", "_captions_val")
RANKS = ("R@1", "R@5", "R@10", "merged-R@1", "merged-R@5", "merged-R@10")
COLOUR_IMAGES = 100
CHANCE = 100 / len(COLOURS)
CLAIMS = (
    Ordering("R@1: names alone < + captions", "R@1", "glip_detection", "<", "glip_captions"),
    Ordering("R@1: teacher < student", "R@1", TEACHER.name, "<", STUDENT.name),
    Ordering("colour: chance < + captions", "colour", CHANCE, "<", "glip_captions"),
    Ordering(
        "colour: the right one first, more often than not",
        "colour",
        50.0,
        "<",
        "glip_captions",
        "Likely: little of the loss asks for colours. About half of the images are asked for bare "
        "names (of `glip_student`, whose colours are better, a third), and the phrases of a "
        "caption are mostly told apart by their glyphs: R@1 of `glip_detection`, which knows no "
        "colour, says so.",
    ),
)

Row = dict[str, Any]
Predictor = Callable[..., Any]  # as OpenVocabularyPredictor is called


def measure(run: Run, method: Method) -> Row:
    """Recall of the phrases of captions, and the share of objects given their colour, percent."""
    weights = method.weights(run)
    options = ["MODEL.WEIGHTS", str(weights), "DATASETS.TEST", f"('{CAPTIONS}',)"]
    options += ["DATASETS.OWN", ""]  # labels of one seed have the name of another's
    cfg = load_config(str(weights.parent / "config.yaml"), options)
    model = build_open_vocabulary_model(cfg)
    recall = _recall(cfg, model)
    predictor = OpenVocabularyPredictor(cfg, model=model, distractors=False)
    records = DatasetCatalog.get(CAPTIONS)[:COLOUR_IMAGES]
    glyphs = MetadataCatalog.get(CAPTIONS).thing_classes
    found = [*right_colours(predictor, records, glyphs)]
    colour = round(100 * float(np.mean(found)), 2) if found else None
    named = {rank: round(recall[rank], 2) for rank in RANKS}
    return {"method": method.name, "seed": run.seed, **named, "colour": colour, "boxes": len(found)}


def _recall(cfg: CfgNode, model: nn.Module) -> dict[str, float]:
    cfg = cfg.clone()
    cfg.defrost()
    with tempfile.TemporaryDirectory() as folder:
        cfg.OUTPUT_DIR = folder
        found: dict[str, float] = OpenVocabularyTrainer.test(cfg, model)[TASK]
    return found


def right_colours(
    predictor: Predictor, records: Sequence[dict[str, Any]], glyphs: Sequence[str]
) -> Iterator[bool]:
    """Whether the best of all colours before its glyph's name is an object's own.

    An image is asked for one glyph in every colour ("red anchor", "orange anchor", ...). Of an
    object that a box of any colour covers, the colour of the box with the best score is compared.

    Args:
        predictor: finds phrases.
        records: of a set of Pictograms' captions.
        glyphs: names of its categories.
    """
    for record in tqdm(records, desc="colours", unit="image"):
        for glyph, objects in objects_by_glyph(record, glyphs).items():
            names = [f"{colour} {glyph}" for colour in COLOURS]
            found = predictor(record["file_name"], names, threshold=0.0).instances
            boxes = found.pred_boxes.tensor.numpy()
            for colour, box in objects:
                covering = np.flatnonzero(overlaps(boxes, box[None])[:, 0] >= IOU)
                if len(covering):  # detections come best first
                    best = int(found.pred_classes[int(covering[0])])
                    yield list(COLOURS)[best] == colour


def objects_by_glyph(
    record: dict[str, Any], glyphs: Sequence[str]
) -> dict[str, list[tuple[str, NDArray]]]:
    """Name of a glyph -> colour and (4,) XYXY box of each of its objects, crowds left out."""
    found: dict[str, list[tuple[str, NDArray]]] = {}
    for one in record["annotations"]:
        if one["iscrowd"]:
            continue
        ((start, end),) = one[SPANS]
        colour = record[CAPTION][start:end].partition(" ")[0]
        box = np.array(BoxMode.convert(one["bbox"], one["bbox_mode"], BoxMode.XYXY_ABS))
        found.setdefault(glyphs[one["category_id"]], []).append((colour, box))
    return found


def table_of(rows: Sequence[Row]) -> str:
    """Mean and standard deviation over seeds, Markdown."""
    columns = (*RANKS, "colour")
    body = []
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        body.append([name, *(spread([row[column] for row in mine]) for column in columns)])
    alignment = ("left", *["right"] * len(columns))
    header = ["method", *columns]
    return tabulate(body, header, tablefmt="pipe", colalign=alignment, disable_numparse=True)


def section(document: Document) -> str:
    """Of the page of results, from what was measured."""
    rows = document["rows"]
    reasons = "".join(f"\n{one}\n" for one in reasons_of(rows, CLAIMS))
    return f"""## Phrases and colours

`R@k`: phrases of the validation scenes' captions ("two red anchors and a blue umbrella") of which
one of the first k boxes has an IoU of at least {IOU} with a box of the phrase; `merged`: with the
box around all of them, as in Flickr30k Entities. `colour`: attribute prompts. {COLOUR_IMAGES}
images are asked for each of their glyphs in all {len(COLOURS)} colours ("red anchor", "orange
anchor", ...); of objects that a box covers, the share whose own colour has the best score (chance:
{CHANCE:.0f}). Base and novel glyphs are taken together. `glip_detection` and `glip_no_fusion` have
never read a colour: their prompts were bare names.
{origin(document)}; numbers:
[results/pictograms_phrases.json](results/pictograms_phrases.json).

{table_of(rows)}

{orderings_table(rows, CLAIMS, source="expected")}
{reasons}"""
