#!/usr/bin/env python
"""Train the small BERT that Pictograms' GLIP begins with: what its words mean."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovd_d2.clip.loading import load_teacher
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import atomic_folder
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.projects.glip.pictogram_words import train_words, words_known
from ovd_d2.projects.glip.prompts import load_tokenizer
from ovd_d2.projects.glip.text import SHIPPED

EPILOG = """
example (half a minute on one core; what it writes is in the package already):
  python projects/GLIP/tools/train_pictogram_bert.py --output output/pictogram_bert
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=SHIPPED["pictograms"], help="folder")
    parser.add_argument("--steps", type=int, default=400, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


@exit_with_message(SetupError, OSError)
def main() -> None:
    args = parse_args()
    teacher, tokenizer = (
        load_teacher(ARCHITECTURE, SHIPPED_TAG, "cpu"),
        load_tokenizer("pictograms"),
    )
    encoder = train_words(teacher, tokenizer, steps=args.steps, seed=args.seed)
    with atomic_folder(args.output) as folder:
        encoder.bert.save_pretrained(folder)
    known = words_known(encoder, tokenizer, teacher)
    print(
        f"{args.output}: {100 * known:.1f} % of the glyphs' names are nearest to their own meaning"
    )


if __name__ == "__main__":
    main()
