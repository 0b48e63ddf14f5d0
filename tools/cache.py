#!/usr/bin/env python
"""The proposal-embedding cache: build it, look at it, check it, compare it, join it, import it.

Guide: docs/cache.md. Every command has an example: tools/cache.py COMMAND --help
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from cache_import.convert import BOX_FORMATS, convert_cache, describe
from cache_import.layouts import DetProLayout, Layout, ObjectCentricLayout
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from tabulate import tabulate

import ovd_d2  # noqa: F401 (registers the data sets)
from ovd_d2.analysis.cache_comparison import HEADER, agreement_rows, compare_caches
from ovd_d2.analysis.cache_info import info_table, store_info, written_table
from ovd_d2.analysis.cache_sample import sample_ids, sample_records, sample_rows, sample_sheet
from ovd_d2.cache import CacheError, EmbeddingCache, ProposalStore, verify_store
from ovd_d2.cache.identity import add_image_list
from ovd_d2.cache.manifest import DTYPES
from ovd_d2.cache.merge import merge_stores
from ovd_d2.cache.shards import IMAGES_PER_SHARD
from ovd_d2.cache.store import open_store
from ovd_d2.clip.crops import RESIZE_CHOICES, CropRecipe
from ovd_d2.clip.dense import DenseRecipe
from ovd_d2.clip.loading import load_teacher
from ovd_d2.clip.recipe import Recipe
from ovd_d2.data.images import ImageError
from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.cache_builder import build_cache
from ovd_d2.engine.launching import (
    add_device_argument,
    add_launch_arguments,
    launch_processes,
)
from ovd_d2.engine.run import load_config, training_set
from ovd_d2.errors import exit_with_message
from ovd_d2.ranks import RankError
from ovd_d2.vocabulary import Vocabulary

BUILD_EXAMPLE = """examples:
  the training set and the teacher of a config:
    python tools/cache.py build --config-file configs/vild_ensemble_r50_short.yaml \\
        --proposals datasets://lvis/proposals --output datasets://lvis/cache_vit_b32 --num-gpus 8
  the same without one:
    python tools/cache.py build --dataset lvis_v1_train_norare \\
        --architecture ViT-B-32-quickgelu --pretrained openai \\
        --proposals datasets://lvis/proposals --output datasets://lvis/cache_vit_b32 --num-gpus 8

  all proposals of an image out of one pass of a ViT, best of one that was refined for it:
    python tools/cache.py build --dataset lvis_v1_train_norare --teacher dense \\
        --architecture EVA02-B-16 --pretrained clipself_eva_b16.pt \\
        --proposals datasets://lvis/proposals --output datasets://lvis/cache_dense --num-gpus 8

Stopped at any point, the same command continues where it was, with any number of processes.
Machines without a common disk build a part each, joined afterwards by tools/cache.py merge:
  python tools/cache.py build ... --part 2/4 --output /local/part2
"""
INFO_EXAMPLE = """example:
  python tools/cache.py info datasets://lvis/cache_vit_b32
  python tools/cache.py info --json output/demo/seed0/cache
"""
VERIFY_EXAMPLE = """example:
  python tools/cache.py verify datasets://lvis/cache_vit_b32

Exit status 1 if anything is damaged or missing; every problem says what to do.
"""
MERGE_EXAMPLE = """examples:
  the parts of one build, made on machines without a common disk:
    python tools/cache.py merge /mnt/part1 /mnt/part2 --output datasets://lvis/cache_vit_b32
  the finished caches of two data sets, for a training on both:
    python tools/cache.py merge lvis/cache o365/cache --output cache_lvis_o365

Stopped at any point, the same command continues where it was. The sources stay as they are.
"""
CONVERT_EXAMPLE = """examples:
  DetPro's zip of .pth files, with the proposals that belong to it:
    python tools/cache.py convert --layout detpro --embeddings lvis_clip_image_embedding.zip \\
        --proposals rpn_r101_fpn_lvis_train.pkl --dataset lvis_v1_train_norare \\
        --vocabulary datasets://lvis/vocabulary_vit_b32.safetensors --output cache_detpro
  object-centric-ovd's folder of pickles:
    python tools/cache.py convert --layout object-centric-ovd \\
        --embeddings MAVL_proposals/coco_props/classagnostic_distilfeats \\
        --dataset coco_zeroshot_train_oriorder --vocabulary vocabulary.safetensors \\
        --output cache_ocovd

Stopped at any point, the same command continues where it was. No code in these files is run.
"""
SAMPLE_EXAMPLE = """examples:
  five proposals of three images in words, with the names nearest to them:
    python tools/cache.py sample output/demo/seed0/cache --vocabulary vocabulary.safetensors
  the same as an image:
    python tools/cache.py sample output/demo/seed0/cache --vocabulary vocabulary.safetensors \\
        --output sample.png
"""
COMPARE_EXAMPLE = """example:
  how far the embeddings of a dense map are from those of crops, and how often both have the same
  name nearest to them:
    python tools/cache.py compare output/cache_crops output/cache_dense \\
        --vocabulary vocabulary.safetensors

Both must be of the same proposals; their teachers may differ where they share a space, as a refined
ViT and its original do.
"""
LIST_EXAMPLE = """example:
  python tools/cache.py add-image-list datasets://lvis/cache_vit_b32 --dataset lvis_v1_train_norare

For caches and proposals made before they named their images themselves (no images.json in the
folder). The data set must still have the images that it had then: its fingerprint is compared.
"""


def parse_args(args: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, add_arguments, what, example in (
        ("build", add_build_arguments, "embed the proposals of a data set", BUILD_EXAMPLE),
        ("info", add_info_arguments, "what is in a cache, and how far its build is", INFO_EXAMPLE),
        ("verify", add_verify_arguments, "read everything back and check it", VERIFY_EXAMPLE),
        ("merge", add_merge_arguments, "join parts of a build, or data sets", MERGE_EXAMPLE),
        ("convert", add_convert_arguments, "import another project's files", CONVERT_EXAMPLE),
        ("sample", add_sample_arguments, "show a few records", SAMPLE_EXAMPLE),
        ("compare", add_compare_arguments, "how alike two caches are", COMPARE_EXAMPLE),
        ("add-image-list", add_list_arguments, "name the images of an older cache", LIST_EXAMPLE),
    ):
        command = commands.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=example,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(command)
    return parser.parse_args(args)


def add_build_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config-file", help="the teacher: its MODEL.OVD.TEACHER; its data set, if none is given"
    )
    parser.add_argument("--dataset", help="registered data set name")
    parser.add_argument(
        "--proposals", required=True, help="folder written by tools/extract_proposals.py"
    )
    parser.add_argument("--architecture", help="open_clip architecture name")
    parser.add_argument(
        "--pretrained", help="open_clip pretrained tag or a local checkpoint file of it"
    )
    add_output_arguments(parser)
    parser.add_argument(
        "--teacher",
        choices=("crops", "dense"),
        default="crops",
        help="what the teacher looks at: crops of every proposal, or, dense, the image once, for a "
        "ViT alone (default: crops)",
    )
    parser.add_argument(
        "--resize",
        choices=RESIZE_CHOICES,
        help="crop to teacher input: open_clip = its own transform, which cuts the ends off long "
        "boxes; squash = the whole box whatever its aspect ratio (default: open_clip)",
    )
    add_dense_arguments(parser)
    parser.add_argument(
        "--batch-size",
        type=int,
        help="in one teacher pass: crops (default: 256), or images with --dense-square (default: "
        "1)",
    )
    add_device_argument(parser)
    parser.add_argument(
        "--amp",
        action=argparse.BooleanOptionalAction,
        help="the teacher computes in bfloat16, on CUDA only (default: there yes)",
    )
    parser.add_argument(
        "--part",
        type=part_of,
        default=(1, 1),
        metavar="I/N",
        help="embed only every N-th file from the I-th, from 1 (default: 1/1, everything)",
    )
    add_launch_arguments(parser)


def add_dense_arguments(parser: argparse.ArgumentParser) -> None:
    """Without defaults, which are those of DenseRecipe: crops refuse them."""
    dense = parser.add_argument_group("with --teacher dense")
    dense.add_argument(
        "--dense-size", type=int, help="pixels of an image's longer side (default: 1024)"
    )
    dense.add_argument(
        "--dense-square",
        action="store_true",
        default=None,
        help="pad images to squares, as CLIPSelf was trained (default: to whole patches)",
    )
    dense.add_argument(
        "--dense-window", type=int, help="patches per side of attention (default: global)"
    )
    dense.add_argument(
        "--dense-global-blocks",
        type=int,
        nargs="+",
        help="blocks, from 0, whose attention is global all the same (default: none)",
    )


def add_info_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a cache, or of proposals")
    parser.add_argument("--json", action="store_true", help="for programs")


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a cache, or of proposals")


def add_merge_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sources", nargs="+", help="folders of two or more caches, or of proposals")
    parser.add_argument("--output", required=True, help="folder of the new cache")
    add_writing_arguments(parser)


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layout", required=True, choices=(DetProLayout.name, ObjectCentricLayout.name)
    )
    parser.add_argument(
        "--embeddings",
        required=True,
        help="detpro: the zip or folder of .pth; object-centric-ovd: the folder",
    )
    parser.add_argument("--proposals", help="detpro: the proposal pickle")
    parser.add_argument(
        "--annotations",
        help="detpro: the JSON whose order of images the pickle has (default: the data set's own)",
    )
    parser.add_argument("--dataset", required=True, help="registered data set name")
    parser.add_argument(
        "--vocabulary",
        required=True,
        help="the vocabulary to train with: its teacher must be the one that made the embeddings "
        "(CLIP ViT-B/32 in both projects), which only you can know",
    )
    parser.add_argument(
        "--box-format",
        choices=BOX_FORMATS,
        default="xyxy",
        help="order of a box's numbers, in pixels of the original images (default: xyxy)",
    )
    add_output_arguments(parser)


def add_sample_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a cache, or of proposals")
    parser.add_argument(
        "--ids", type=int, nargs="+", help="image ids (default: --images at random)"
    )
    parser.add_argument("--images", type=int, default=3, help="how many (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    parser.add_argument("--proposals", type=int, default=5, help="of an image (default: 5)")
    parser.add_argument("--vocabulary", help="names to compare the embeddings with")
    parser.add_argument("--output", help="a PNG (default: in words)")
    parser.add_argument(
        "--dataset", nargs="+", help="registered data sets with the images (default: the cache's)"
    )


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="folder of a cache")
    parser.add_argument("second", help="folder of another one, of the same proposals")
    parser.add_argument("--vocabulary", help="names to compare the embeddings with")


def add_list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", help="folder of a cache, or of proposals")
    parser.add_argument(
        "--dataset", nargs="+", required=True, help="the registered data sets it was made for"
    )


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """What build and convert have in common."""
    parser.add_argument("--output", required=True, help="folder of the cache; created if absent")
    parser.add_argument(
        "--dtype",
        choices=tuple(DTYPES),
        default="float16",
        help="stored type of the embeddings; int8 takes half of float16 (default: float16)",
    )
    parser.add_argument(
        "--top-k", type=int, help="proposals kept per image, by objectness (default: all)"
    )
    add_writing_arguments(parser)


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """What every command that writes has in common."""
    parser.add_argument(
        "--images-per-shard",
        type=int,
        help="images in one file, written at once: what a killed process has to do again "
        f"(default: as in the folder, else {IMAGES_PER_SHARD})",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="delete a cache that is in the folder first"
    )


def part_of(text: str) -> tuple[int, int]:
    """ "2/4" -> (2, 4)."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise argparse.ArgumentTypeError(f"'{text}': expected I/N with 1 <= I <= N, such as 2/4")
    return int(number), int(count)


def build(args: argparse.Namespace) -> None:
    launch_processes(build_in_process, args)


@exit_with_message(CacheError, RankError, FileNotFoundError, ValueError)
def build_in_process(args: argparse.Namespace) -> None:
    """One of the processes of a build."""
    proposals = ProposalStore(args.proposals)  # cheapest to fail: before weights are loaded
    dataset, teacher_key, (architecture, pretrained) = build_source(args)
    dataset_dicts = load_dataset(dataset)
    recipe = build_recipe(args)
    teacher = load_teacher(architecture, pretrained, args.device, key=teacher_key)
    summary = build_cache(
        dataset_dicts,
        proposals,
        teacher,
        args.output,
        dataset_name=dataset,
        top_k=args.top_k,
        recipe=recipe,
        batch_size=args.batch_size,
        dtype=args.dtype,
        images_per_shard=args.images_per_shard,
        overwrite=args.overwrite,
        part=args.part,
    )
    if comm.is_main_process():
        number, count = args.part
        joining = ("part", f"{number} of {count}: join all with tools/cache.py merge")
        print_rows(written_table(summary, [] if summary.manifest.complete else [joining]))


def build_recipe(args: argparse.Namespace) -> Recipe:
    """How boxes become embeddings: options that are not given have the recipe's own defaults."""
    crops = {"--resize": args.resize}
    dense = {
        "--dense-size": args.dense_size,
        "--dense-square": args.dense_square,
        "--dense-window": args.dense_window,
        "--dense-global-blocks": args.dense_global_blocks,
    }
    read, other = (dense, crops) if args.teacher == "dense" else (crops, dense)
    if unread := [option for option, value in other.items() if value is not None]:
        raise CacheError(f"--teacher {args.teacher} does not read {', '.join(unread)}: leave out")
    options: dict[str, Any] = {
        option.removeprefix("--").removeprefix("dense-").replace("-", "_"): value
        for option, value in read.items()
        if value is not None
    }
    device = torch.device(args.device)
    if args.teacher == "dense":
        return DenseRecipe.on(device, amp=args.amp, **options)
    return CropRecipe.on(device, amp=args.amp, **options)


def build_source(args: argparse.Namespace) -> tuple[str, str, tuple[str, str]]:
    """The data set; what names the teacher; its architecture and weights."""
    named = (args.architecture, args.pretrained)
    if args.config_file is None:
        if None in (args.dataset, *named):
            raise CacheError("give --config-file, or --dataset, --architecture and --pretrained")
        return args.dataset, "--architecture, --pretrained", named
    if named != (None, None):
        raise CacheError(
            "--config-file names the teacher: leave out --architecture and --pretrained"
        )
    cfg = load_config(args.config_file)
    teacher = cfg.MODEL.OVD.TEACHER
    key = f"{args.config_file}: MODEL.OVD.TEACHER"
    return args.dataset or training_set(cfg), key, (teacher.ARCHITECTURE, teacher.PRETRAINED)


def info(args: argparse.Namespace) -> None:
    found = store_info(args.path)
    if args.json:
        print(found.json())
    else:
        print_rows(info_table(found))


def verify(args: argparse.Namespace) -> None:
    problems = verify_store(args.path, progress=True)
    if problems:
        listed = "\n".join(f"  {k}. {problem}" for k, problem in enumerate(problems, 1))
        raise CacheError(f"{args.path}: {len(problems)} problem(s) found:\n{listed}")
    found = store_info(args.path)
    print(f"{found.path} is sound: {found.images:,} images, {found.proposals:,} proposals")


def merge(args: argparse.Namespace) -> None:
    summary = merge_stores(
        args.sources,
        args.output,
        images_per_shard=args.images_per_shard,
        overwrite=args.overwrite,
    )
    equal = ("equal in two sources", f"{summary.duplicates:,}")
    print_rows(written_table(summary.written, [equal]))


def convert(args: argparse.Namespace) -> None:
    vocabulary = load_vocabulary(args.vocabulary)
    dataset_dicts = load_dataset(args.dataset)
    summary = convert_cache(
        dataset_dicts,
        open_layout(args),
        args.output,
        dataset_name=args.dataset,
        teacher=vocabulary.teacher,
        embedding_dim=vocabulary.embedding_dim,
        box_format=args.box_format,
        dtype=args.dtype,
        top_k=args.top_k,
        images_per_shard=args.images_per_shard,
        overwrite=args.overwrite,
    )
    print_rows(written_table(summary.written, describe(summary)))


def sample(args: argparse.Namespace) -> None:
    store = open_store(args.path, allow_incomplete=True)
    vocabulary = load_vocabulary(args.vocabulary) if args.vocabulary else None
    ids = args.ids or sample_ids(store, args.images, args.seed)
    sampled = sample_records(store, ids, proposals=args.proposals, vocabulary=vocabulary)
    if not args.output:
        header = ["image", "proposal", "objectness", "x1, y1, x2, y2", "nearest names (cosine)"]
        print(tabulate(sample_rows(sampled), header))
        return
    names = args.dataset or store.manifest.dataset.name.split("+")
    entries = {one["image_id"]: one for name in names for one in load_dataset(name)}
    title = f"{store.manifest.kind} of {store.manifest.dataset.name}: {store.path}"
    sample_sheet(sampled, entries, args.output, title)
    print(args.output)


def compare(args: argparse.Namespace) -> None:
    caches = EmbeddingCache(args.first), EmbeddingCache(args.second)
    vocabulary = load_vocabulary(args.vocabulary) if args.vocabulary else None
    found = compare_caches(*caches, vocabulary, progress=True)
    print(tabulate(agreement_rows(found), HEADER, disable_numparse=True))


def list_images(args: argparse.Namespace) -> None:
    entries = [entry for name in args.dataset for entry in load_dataset(name)]
    file, count = add_image_list(args.path, entries)
    print(f"{file}: {count:,} images")


def open_layout(args: argparse.Namespace) -> Layout:
    if args.layout == ObjectCentricLayout.name:
        if args.proposals or args.annotations:
            raise CacheError("--proposals and --annotations are for --layout detpro alone")
        return ObjectCentricLayout(args.embeddings)
    if not args.proposals:
        raise CacheError("--layout detpro needs --proposals: its .pth files hold no boxes")
    annotations = args.annotations or getattr(MetadataCatalog.get(args.dataset), "json_file", "")
    if not annotations:
        raise CacheError(f"data set '{args.dataset}' has no JSON: name one with --annotations")
    return DetProLayout(args.embeddings, args.proposals, annotations)


@exit_with_message(FileNotFoundError, ValueError)
def load_dataset(name: str) -> list[Mapping[str, Any]]:
    register_data_sets()
    if name not in DatasetCatalog:
        raise CacheError(f"no data set '{name}' is registered (see datasets/README.md)")
    dataset_dicts: list[Mapping[str, Any]] = DatasetCatalog.get(name)
    return dataset_dicts


@exit_with_message(FileNotFoundError, ValueError)
def load_vocabulary(path: str) -> Vocabulary:
    return Vocabulary.load(path)


def print_rows(rows: Iterable[tuple[str, Any]]) -> None:
    print(tabulate(rows, tablefmt="plain", disable_numparse=True))


COMMANDS = {
    "build": build,
    "info": info,
    "verify": verify,
    "merge": merge,
    "convert": convert,
    "sample": sample,
    "compare": compare,
    "add-image-list": list_images,
}


@exit_with_message(CacheError, ImageError)
def main(args: Sequence[str] | None = None) -> None:
    options = parse_args(args)
    COMMANDS[options.command](options)


if __name__ == "__main__":
    main()
