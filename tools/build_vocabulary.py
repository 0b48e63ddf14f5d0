#!/usr/bin/env python
"""Embed category names with a teacher's text encoder and write them as a Vocabulary file."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

from ovd_d2.clip import PROMPT_FAMILIES, CLIPTeacher
from ovd_d2.clip.pictogram_config import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.clip.vocabulary_builder import build_vocabulary, novel_flags, read_names
from ovd_d2.data.categories import CategoryTable, get_categories
from ovd_d2.engine.launching import add_device_argument
from ovd_d2.errors import exit_with_message
from ovd_d2.vocabulary import Vocabulary

EXAMPLE = """examples:
  the categories of a registered data set, with the shipped Pictogram teacher:
    python tools/build_vocabulary.py --dataset pictograms_v1_train \\
        --output output/vocabulary.safetensors
  names of your own, with OpenAI's CLIP:
    python tools/build_vocabulary.py --names-file names.txt --architecture ViT-B-32 \\
        --pretrained openai --output output/mine.safetensors
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--dataset", help="registered data set; it knows its novel categories")
    source.add_argument("--names-file", type=Path, help="text file, one name a line")
    parser.add_argument("--novel-file", type=Path, help="the novel ones among --names-file")
    parser.add_argument("--architecture", default=ARCHITECTURE, help="open_clip model name")
    parser.add_argument("--pretrained", default=SHIPPED_TAG, help="open_clip tag or local file")
    parser.add_argument("--prompts", default="vild63", choices=sorted(PROMPT_FAMILIES))
    parser.add_argument(
        "--synonyms",
        default="all",
        choices=("all", "first"),
        help="where a data set lists some (LVIS): average over all, as ViLD, or take the first",
    )
    parser.add_argument("--output", required=True, help="safetensors file; datasets://... works")
    add_device_argument(parser)
    args = parser.parse_args()
    if args.novel_file and not args.names_file:
        parser.error("--novel-file goes with --names-file; a data set knows its novel categories")
    return args


@exit_with_message(OSError, KeyError, ValueError)
def categories(args: argparse.Namespace) -> CategoryTable:
    if not args.dataset:
        names = read_names(args.names_file)
        novel = novel_flags(names, read_names(args.novel_file) if args.novel_file else [])
        return CategoryTable(names, novel)
    table = get_categories(args.dataset)
    return table if args.synonyms == "all" else replace(table, synonyms=None)


def print_table(vocabulary: Vocabulary, templates: int, path: str) -> None:
    rows = {
        "categories": len(vocabulary),
        "novel": int(vocabulary.novel.sum()),
        "embedding width": vocabulary.embedding_dim,
        "prompts": f"{vocabulary.prompts} ({templates} templates)",
        "teacher": vocabulary.teacher,
        "file": path,
    }
    for label, value in rows.items():
        print(f"{label:<16} {value}")


@exit_with_message(OSError, ValueError)
def main() -> None:
    args = parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    table = categories(args)
    teacher = CLIPTeacher.from_open_clip(args.architecture, args.pretrained, args.device)
    vocabulary = build_vocabulary(
        table.names,
        teacher,
        is_novel=table.is_novel,
        synonyms=table.synonyms,
        prompts=args.prompts,
        progress=True,
    )
    vocabulary.save(args.output)
    print_table(vocabulary, len(PROMPT_FAMILIES[args.prompts]), args.output)


if __name__ == "__main__":
    main()
