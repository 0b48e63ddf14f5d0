#!/usr/bin/env python
"""Write the class-agnostic proposals of a trained first stage: the boxes a cache embeds."""

from __future__ import annotations

import argparse
from functools import partial

from detectron2.data import DatasetCatalog
from detectron2.utils import comm

from ovd_d2.cache import CacheError, RecordWriter
from ovd_d2.engine import build_open_vocabulary_model
from ovd_d2.engine.checkpoint import FIRST_STAGE
from ovd_d2.engine.checks import check_images
from ovd_d2.engine.launching import add_launch_arguments, launch_processes, on_main_process
from ovd_d2.engine.proposals import extract_proposals, proposal_manifest
from ovd_d2.engine.run import load_config, training_set
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.ranks import RankError

EPILOG = """
example (the config and the weights of a detector trained on base categories alone):
  tools/extract_proposals.py --config-file configs/vild_text_r50_short.yaml \\
      --output datasets://lvis/proposals --num-gpus 8 \\
      MODEL.WEIGHTS output/vild_text_r50_short/model_final.pth

Stopped at any point, the same command continues where it was, with any number of processes.
"""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, help="config of the trained detector")
    parser.add_argument("--dataset", help="a registered data set (default: DATASETS.TRAIN)")
    parser.add_argument("--output", required=True, help="folder of the proposals")
    parser.add_argument("--top-k", type=int, default=300, help="proposals per image (default 300)")
    parser.add_argument("--overwrite", action="store_true", help="delete what is in --output first")
    add_launch_arguments(parser)
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs, e.g. MODEL.WEIGHTS"
    )
    return parser.parse_args()


@exit_with_message(SetupError, CacheError, RankError, TypeError)  # TypeError: no first stage
def main(args: argparse.Namespace) -> None:
    cfg = load_config(args.config_file, args.opts)
    dataset = args.dataset or training_set(cfg)
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = args.top_k
    cfg.MODEL.OVD.VOCABULARY = ""  # the first stage has no names
    if not cfg.MODEL.WEIGHTS:
        raise SetupError(["MODEL.WEIGHTS is empty: proposals need a trained first stage"])
    on_main_process(partial(check_images, cfg, dataset))
    dataset_dicts = DatasetCatalog.get(dataset)
    model = build_open_vocabulary_model(cfg, required=FIRST_STAGE)
    manifest = proposal_manifest(cfg, dataset, dataset_dicts)
    with RecordWriter(
        args.output, manifest, overwrite=args.overwrite, images=dataset_dicts
    ) as writer:
        manifest = extract_proposals(cfg, model, dataset_dicts, writer)
    if comm.is_main_process():
        print(f"{manifest.num_rows} proposals of {manifest.num_images} images in {args.output}")


if __name__ == "__main__":
    launch_processes(main, parse_args())
