#!/usr/bin/env python
"""Embed the proposals of a data set with the teacher and store them as an EmbeddingCache."""

from __future__ import annotations

import argparse
import sys

from detectron2.data import DatasetCatalog

import ovd_d2  # noqa: F401 (registers the data sets)
from ovd_d2.cache import CacheError, ProposalStore
from ovd_d2.cache.builder import BuildSummary, build_cache
from ovd_d2.cache.writer import IMAGES_PER_SHARD
from ovd_d2.clip.crops import RESIZE_CHOICES
from ovd_d2.clip.teacher import CLIPTeacher

EXAMPLE = """example:
  python tools/build_cache.py --dataset lvis_v1_train_norare \\
      --proposals datasets://ovd/proposals_lvis_train --architecture ViT-B-32 \\
      --pretrained openai --output datasets://ovd/cache_lvis_train_vitb32 --device cuda

Stopped at any point, the same command continues where it was.
"""


def parse_args(args: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", required=True, help="registered data set name")
    parser.add_argument(
        "--proposals", required=True, help="folder written by tools/extract_proposals.py"
    )
    parser.add_argument("--architecture", required=True, help="open_clip architecture name")
    parser.add_argument(
        "--pretrained", required=True, help="open_clip pretrained tag or a local checkpoint file"
    )
    parser.add_argument("--output", required=True, help="folder of the cache; created if absent")
    parser.add_argument("--top-k", type=int, help="proposals kept an image (default: all)")
    parser.add_argument(
        "--resize",
        choices=RESIZE_CHOICES,
        default="open_clip",
        help="crop to teacher input: open_clip = its own transform, which cuts the ends off long "
        "boxes; squash = the whole box whatever its aspect ratio (default: open_clip)",
    )
    parser.add_argument(
        "--batch-size", type=int, default=256, help="crops in one teacher pass (default: 256)"
    )
    parser.add_argument(
        "--images-per-shard",
        type=int,
        default=IMAGES_PER_SHARD,
        help=f"images in one shard file (default: {IMAGES_PER_SHARD})",
    )
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ... (default: cpu)")
    parser.add_argument(
        "--overwrite", action="store_true", help="delete a cache that is in the folder first"
    )
    return parser.parse_args(args)


def main(args: list[str] | None = None) -> None:
    options = parse_args(args)
    proposals = ProposalStore(options.proposals)  # cheapest to fail: before weights are loaded
    dataset_dicts = DatasetCatalog.get(options.dataset)
    teacher = CLIPTeacher.from_open_clip(
        options.architecture, options.pretrained, device=options.device
    )
    summary = build_cache(
        dataset_dicts,
        proposals,
        teacher,
        options.output,
        dataset_name=options.dataset,
        top_k=options.top_k,
        batch_size=options.batch_size,
        resize=options.resize,
        images_per_shard=options.images_per_shard,
        overwrite=options.overwrite,
    )
    print(describe(summary))


def describe(summary: BuildSummary) -> str:
    return (
        f"images     {summary.images:,} ({summary.images_built:,} in this run)\n"
        f"proposals  {summary.proposals:,}\n"
        f"bytes      {summary.bytes:,}\n"
        f"seconds    {summary.seconds:.1f}\n"
        f"path       {summary.path}"
    )


if __name__ == "__main__":
    try:
        main()
    except CacheError as error:
        sys.exit(str(error))
