#!/usr/bin/env python
"""Embed category names with a teacher's text encoder and write them as a Vocabulary file."""

from __future__ import annotations

import argparse
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from ovd_d2.clip import PROMPT_FAMILIES
from ovd_d2.clip.loading import load_teacher
from ovd_d2.clip.teacher import SCHEMAS, CLIPTeacher
from ovd_d2.clip.vocabulary_builder import (
    EXAMPLE_WEIGHT,
    build_vocabulary,
    novel_flags,
    read_names,
    vocabulary_of_entries,
    vocabulary_of_rows,
)
from ovd_d2.data.any_image import as_rgb
from ovd_d2.data.builtin import PICTOGRAM_SETS
from ovd_d2.data.categories import joined_categories
from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.launching import add_device_argument
from ovd_d2.engine.run import load_config, training_set
from ovd_d2.entries import read_entries
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.vocabulary import Categories, Vocabulary

EXAMPLE = """examples:
  the categories of a registered data set, with the shipped Pictogram teacher:
    python tools/build_vocabulary.py --dataset pictograms_v1_train \\
        --output output/vocabulary.safetensors
  names of your own, with OpenAI's CLIP:
    python tools/build_vocabulary.py --names-file names.txt --architecture ViT-B-32-quickgelu \\
        --pretrained openai --output output/mine.safetensors
  entries with synonyms, descriptions and example images (docs/predicting.md has the form):
    python tools/build_vocabulary.py --entries mine.yaml \\
        --config-file configs/vild_r50_short.yaml --output output/mine.safetensors
  embeddings that somebody else made, with OpenAI's CLIP (what Detic ships):
    python tools/build_vocabulary.py --embeddings clip.npy --names-file names.txt \\
        --architecture ViT-B-32-quickgelu --pretrained openai --output output/theirs.safetensors
  what a config asks for, to where it reads it:
    python tools/build_vocabulary.py --config-file configs/vild_r50_short.yaml
  its teacher and prompts for names of another data set:
    python tools/build_vocabulary.py --config-file configs/vild_r50_short.yaml --dataset my_train \\
        --output output/mine.safetensors
"""
KEY = "MODEL.OVD.TEACHER"
WARNING = (
    f"teacher: the shipped {ARCHITECTURE}, which knows drawn glyphs only. For photographs give "
    "--config-file, or --architecture and --pretrained (ViT-B-32-quickgelu, openai)."
)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--dataset",
        nargs="+",
        help="registered data sets, which know what is novel; the names of all of them "
        "(default: the first in DATASETS.TRAIN of the config)",
    )
    source.add_argument("--names-file", type=Path, help="text file, one name per line")
    source.add_argument(
        "--entries", type=Path, help="YAML file: names, synonyms, descriptions, example images"
    )
    parser.add_argument(
        "--embeddings",
        type=Path,
        help=".npy file, (names, width), of the names in --names-file; the teacher that made them "
        "is named as otherwise",
    )
    parser.add_argument(
        "--example-weight",
        type=float,
        default=EXAMPLE_WEIGHT,
        help="of the example images of --entries, the rest is the words' (default: %(default)s)",
    )
    parser.add_argument("--novel-file", type=Path, help="the novel ones among --names-file")
    parser.add_argument(
        "--config-file",
        help="teacher and prompts: its MODEL.OVD.TEACHER; and what else is not given here",
    )
    parser.add_argument(
        "--architecture", help=f"open_clip model name (default: {ARCHITECTURE}, for drawn glyphs)"
    )
    parser.add_argument("--pretrained", help="open_clip tag or local file of that architecture")
    parser.add_argument(
        "--prompts", choices=sorted(PROMPT_FAMILIES), help="prompt family (default: vild63)"
    )
    parser.add_argument(
        "--synonyms",
        default="all",
        choices=("all", "first"),
        help="where a data set lists some (LVIS): average over all, as ViLD, or take the first",
    )
    parser.add_argument(
        "--output",
        help="safetensors file; datasets://... works (default: MODEL.OVD.VOCABULARY of the config)",
    )
    add_device_argument(parser)
    args = parser.parse_args()
    if not args.config_file and not (args.dataset or args.names_file or args.entries):
        parser.error("name one of --dataset, --names-file, --entries and --config-file")
    if args.embeddings and not args.names_file:
        parser.error("--embeddings needs the --names-file of their rows")
    if args.embeddings and not (args.config_file or args.architecture):
        parser.error("--embeddings needs the teacher that made them: --architecture, --pretrained")
    if not args.config_file and not args.output:
        parser.error("name --output, or the --config-file that reads it")
    if args.novel_file and not args.names_file:
        parser.error("--novel-file goes with --names-file; a data set knows its novel categories")
    if args.config_file and (args.architecture or args.pretrained):
        parser.error("--config-file names the teacher: leave out --architecture and --pretrained")
    if args.architecture and not args.pretrained and not args.architecture.startswith(SCHEMAS):
        parser.error("--architecture needs --pretrained: an open_clip tag of it, or a local file")
    return args


def add_what_the_config_says(args: argparse.Namespace) -> None:
    """`--dataset` and `--output`, where they are not given."""
    cfg = load_config(args.config_file)
    if not (args.dataset or args.names_file or args.entries):
        args.dataset = [training_set(cfg)]
    args.output = args.output or cfg.MODEL.OVD.VOCABULARY
    if not args.output:
        raise SetupError([f"{args.config_file}: MODEL.OVD.VOCABULARY is empty: give --output"])


def choose_teacher(args: argparse.Namespace) -> tuple[str, str, str, str]:
    """Architecture, pretrained, prompts, and what names the teacher."""
    if args.config_file:
        wanted = load_config(args.config_file).MODEL.OVD.TEACHER
        prompts = args.prompts or wanted.PROMPTS
        return wanted.ARCHITECTURE, wanted.PRETRAINED, prompts, f"{args.config_file}: {KEY}"
    prompts = args.prompts or "vild63"
    if args.architecture or args.pretrained:
        named = (args.architecture or ARCHITECTURE, args.pretrained or "")
        return *named, prompts, "--architecture, --pretrained"
    if not all(one.startswith(PICTOGRAM_SETS) for one in args.dataset or [""]):
        logging.warning(WARNING)
    return ARCHITECTURE, SHIPPED_TAG, prompts, "the shipped teacher"


@exit_with_message(OSError, KeyError, ValueError)
def categories(args: argparse.Namespace) -> Categories:
    register_data_sets()
    if not args.dataset:
        names = read_names(args.names_file)
        novel = novel_flags(names, read_names(args.novel_file) if args.novel_file else [])
        return Categories(names, novel)
    known = joined_categories(args.dataset)
    return known if args.synonyms == "all" else replace(known, synonyms=None)


def made_by(args: argparse.Namespace, teacher: CLIPTeacher, prompts: str) -> Vocabulary:
    """The vocabulary that the arguments describe."""
    if args.entries:
        return vocabulary_of_entries(
            read_entries(args.entries),
            teacher,
            as_rgb,
            prompts=prompts,
            example_weight=args.example_weight,
            progress=True,
        )
    wanted = categories(args)
    if args.embeddings:
        return vocabulary_of_rows(wanted, read_embeddings(args.embeddings), teacher, prompts)
    return build_vocabulary(wanted, teacher, prompts=prompts, progress=True)


def read_embeddings(path: Path) -> np.ndarray:
    """The array of a .npy file; nothing in it is run."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SetupError([f"--embeddings {path}: no array of numbers ({error})"]) from error


def print_table(vocabulary: Vocabulary, templates: int, path: str) -> None:
    rows = {
        "categories": len(vocabulary),
        "synonyms": len(vocabulary.synonym_embeddings),
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
    if args.config_file:
        add_what_the_config_says(args)
    architecture, pretrained, prompts, key = choose_teacher(args)
    teacher = load_teacher(architecture, pretrained, args.device, key=key)
    vocabulary = made_by(args, teacher, prompts)
    vocabulary.save(args.output)
    print_table(vocabulary, len(PROMPT_FAMILIES[prompts]), args.output)


if __name__ == "__main__":
    main()
