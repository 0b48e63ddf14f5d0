#!/usr/bin/env python
"""Evaluate a trained detector on other data sets by swapping its vocabulary: one table."""

from __future__ import annotations

import argparse

from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.config_keys import default_config
from ovd_d2.engine.launching import launch_processes
from ovd_d2.engine.run import load_config
from ovd_d2.engine.transfer import evaluate_transfer, transfer_table
from ovd_d2.errors import SetupError, exit_with_message

EPILOG = """
examples:
  an LVIS-trained model on VOC, COCO and Objects365, as in the paper:
    tools/evaluate_transfer.py --config-file configs/vild_ensemble_r50.yaml --num-gpus 8 \\
        --datasets voc_2007_test coco_2017_val objects365_v2_val \\
        MODEL.WEIGHTS output/vild_ensemble_r50/model_final.pth
  a Pictograms model on a set of your own (OVD_DATASETS, docs/own-data.md):
    tools/evaluate_transfer.py --config-file configs/pictograms/vild_text.yaml \\
        --datasets my_val MODEL.WEIGHTS output/demo/seed0/vild_text/model_final.pth

Names become a vocabulary through MODEL.OVD.TEACHER; GLIP reads them itself. The table also goes to
OUTPUT_DIR/transfer/results.json.
"""


def split_datasets(words: list[str]) -> tuple[list[str], list[str]]:
    """Data set names, and the config options after them.

    argparse hands both to --datasets, which takes all words that follow it. The options begin at
    the first word that is no data set and whose part before a dot is a key of the config.
    """
    keys = default_config()
    for position, word in enumerate(words):
        if word not in DatasetCatalog and word.split(".")[0] in keys:
            return words[:position], words[position:]
    return words, []


@exit_with_message(SetupError)
def main(args: argparse.Namespace) -> None:
    register_data_sets()
    names, opts = split_datasets(args.datasets)
    cfg = load_config(args.config_file, [*args.opts, *opts])
    report = evaluate_transfer(cfg, args, names)
    if comm.is_main_process():
        print(transfer_table(report))


if __name__ == "__main__":
    parser = default_argument_parser(epilog=EPILOG)
    parser.description = __doc__
    parser.add_argument(
        "--datasets", nargs="+", required=True, metavar="NAME", help="registered data sets"
    )
    arguments = parser.parse_args()
    launch_processes(main, arguments)
