#!/usr/bin/env python
"""Fit, to a training's own images, how likely a name is there by its best score: "not here"."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
from tabulate import tabulate

import ovd_d2  # noqa: F401 (registers the model)
from ovd_d2.calibration import (
    Answers,
    Scene,
    absent_answers,
    answers,
    calibrated,
    report,
    scenes,
    vocabulary_for,
)
from ovd_d2.data.categories import get_categories
from ovd_d2.engine.run import load_config, training_set
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import atomic_write
from ovd_d2.predictor import THRESHOLD, OpenVocabularyPredictor
from ovd_d2.presence import Presence, reliability
from ovd_d2.vocabulary import Vocabulary

mpl.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

EPILOG = """
example:
  python tools/calibrate_presence.py --training output/demo/seed0/vild_ensemble --crops

The folder is a training's OUTPUT_DIR. Fits on its training set, reports on its test set, and writes
presence.json and presence.png beside the weights; tools/export_model.py takes the former along, the
predictor reads it. Names count as absent from an image where the annotations say so.
"""
PLOT = "presence.png"
COLUMNS = {
    "crops": "crops",
    "names": "names",
    "present": "in image",
    "absent": "not in image",
    "calibration_error": "calibration error",
    "recall": "recall",
    "recall_calibrated": "with least presence",
    "false_boxes": "false boxes",
    "false_boxes_calibrated": "with least presence",
}
COLOURS = {"base": "#1f77b4", "novel": "#ff7f0e"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--training", required=True, type=Path, help="its OUTPUT_DIR")
    parser.add_argument("--weights", default="model_final.pth", help="checkpoint in that folder")
    parser.add_argument(
        "--images", type=int, default=1000, help="of either set, drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="of boxes (default: %(default)s)"
    )
    parser.add_argument(
        "--crops",
        action="store_true",
        help="let the teacher look at the best box of each name that is found, now and whenever "
        "the predictor is called: two crops per name; the table shows what that changes",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config options: KEY VALUE ...")
    return parser.parse_args()


def shown_of(
    predictor: OpenVocabularyPredictor, dataset: str, images: int
) -> tuple[list[Scene], Vocabulary]:
    """Images of a data set, and its names."""
    return scenes(dataset, images), vocabulary_for(predictor, get_categories(dataset))


def plot(presence: Presence, seen: Answers, path: Path) -> None:
    """Reliability of base and of novel names, and how often each presence is said."""
    figure, (axis, counts) = plt.subplots(
        2, 1, figsize=(4.2, 5.2), sharex=True, height_ratios=(3, 1), layout="constrained"
    )
    axis.plot([0, 1], [0, 1], color="#adb5bd", linewidth=1, linestyle=":")
    for label, kept in (("base", ~seen.novel), ("novel", seen.novel)):
        part = seen.where(kept)
        if not part.present.any():
            continue
        bins = reliability(part.presences(presence), part.present)
        said = [one.presence for one in bins]
        axis.plot(said, [one.rate for one in bins], "o-", color=COLOURS[label], label=label)
        counts.plot(said, [one.weight for one in bins], "o-", color=COLOURS[label])
    axis.axvline(presence.least, color="#343a40", linewidth=1, linestyle="--", label="least")
    axis.set(ylabel="share of names that are there", xlim=(0, 1), ylim=(0, 1))
    axis.legend(frameon=False, loc="upper left")
    counts.set(xlabel="presence (as many names there as not)", ylabel="weight", ylim=(0, None))
    for one in (axis, counts):
        one.spines[["top", "right"]].set_visible(False)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    plt.close(figure)


def table_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """For the terminal."""
    return tabulate([[row[key] for key in COLUMNS] for row in rows], list(COLUMNS.values()))


@exit_with_message(SetupError, ValueError, FileNotFoundError)
def main() -> None:
    args = parse_args()
    if not (args.training / "config.yaml").is_file():
        raise SetupError([f"{args.training} has no config.yaml: name the OUTPUT_DIR of a training"])
    weights = args.training / args.weights
    options = ["MODEL.WEIGHTS", str(weights), *args.opts]
    cfg = load_config(str(args.training / "config.yaml"), options)
    if not cfg.DATASETS.TEST:
        raise SetupError(["DATASETS.TEST is empty: name a set to report on"])
    # What lies beside the weights may be of others: it is about to be written anew.
    before = Presence(1.0, 0.0, 0.0, crop_weight=float(args.crops))
    predictor = OpenVocabularyPredictor(cfg, presence=before)
    fitted_on, reported_on = training_set(cfg), str(cfg.DATASETS.TEST[0])
    shown, names = shown_of(predictor, fitted_on, args.images)
    seen = answers(predictor, names, shown, args.threshold)
    presence = calibrated(seen, crops=args.crops)
    others = [calibrated(seen)] if args.crops else []  # what crops change
    shown, names = shown_of(predictor, reported_on, args.images)
    seen = answers(predictor, names, shown, args.threshold)
    lacking = absent_answers(predictor, names, shown, args.threshold)
    rows = [
        {"crops": "yes" if one.crop_weight else "no", **row}
        for one in (*others, presence)
        for row in report(one, seen, lacking, args.threshold)
    ]
    measured = {
        "fitted_on": fitted_on,
        "reported_on": reported_on,
        "images": args.images,
        "threshold": args.threshold,
        "rows": rows,
    }
    written = replace(presence, measured=measured).save(weights)
    plot(presence, seen, args.training / PLOT)
    print(
        f"temperature {presence.temperature:.3f}, weight of crops {presence.crop_weight:.3f}, bias "
        f"{presence.bias:.3f}, least presence {presence.least:.3f} (fitted on {fitted_on})\n"
        f"on {reported_on}; false boxes of ten images, each asked for ten names that it lacks:\n"
        f"{table_of(rows)}\n{written}\n{args.training / PLOT}"
    )


if __name__ == "__main__":
    main()
