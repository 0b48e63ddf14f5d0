#!/usr/bin/env python
"""Convert released checkpoints: to a folder that a config evaluates."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovd_d2.data.categories import get_categories
from ovd_d2.engine.weights import read_checkpoint
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import atomic_write, atomic_write_json, sha256_file
from ovd_d2.modeling.torchvision_weights import convert_resnet
from ovd_d2.projects.clipself.fvit import official_weights as fvit_weights
from ovd_d2.projects.glip import official_weights as glip_weights
from ovd_d2.vild import detpro_weights
from ovd_d2.vild.official_weights import convert_variables
from ovd_d2.vocabulary import Vocabulary

EPILOG = """example:
  tools/convert_weights.py vild-tf resnet50_vild $DETECTRON2_DATASETS/official/vild_r50
  tools/train_net.py --config-file configs/official/vild_r50.yaml --eval-only
IN of vild-tf: a SavedModel's folder, or a checkpoint without its ending (model.ckpt-180000);
reading it needs TensorFlow: pip install tensorflow-cpu
IN of detpro: its .pth, with --embeddings the file of text embeddings that belongs to it
IN of torchvision: resnet50-11ad3fa6.pth; MODEL.WEIGHTS names OUT's model.pth, and the config says
INPUT.FORMAT RGB, MODEL.PIXEL_MEAN "[123.675, 116.28, 103.53]", PIXEL_STD "[58.395, 57.12, 57.375]",
RESNETS.STRIDE_IN_1X1 False
IN of glip: its .pth; MODEL.WEIGHTS of a config of projects/GLIP, of the same variant, names OUT's
IN of swin: a Swin of its authors, as swin_tiny_patch4_window7_224.pth; MODEL.WEIGHTS of a config of
projects/GLIP, which is to train, names OUT's
IN of fvit: its .pth; MODEL.WEIGHTS and MODEL.OVD.VOCABULARY of projects/CLIPSelf/configs name OUT's
"""
DATASET = "lvis_v1_val"  # whose categories the released ViLD models know
# Number of categories of a released F-ViT -> the data set.
FVIT_DATASETS = {65: "coco_generalized_zeroshot_val", 1203: DATASET}
VARIABLES = "variables/variables"  # of a SavedModel


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", required=True)
    tensorflow = kinds.add_parser("vild-tf", help="the official code's (TensorFlow)")
    detpro = kinds.add_parser("detpro", help="DetPro's ViLD (mmdetection)")
    fvit = kinds.add_parser("fvit", help="CLIPSelf's detector F-ViT (mmdetection)")
    glip = kinds.add_parser("glip", help="GLIP-T (A) to (C), GLIP-T, GLIP-L (maskrcnn-benchmark)")
    swin = kinds.add_parser("swin", help="Swin of ImageNet, of which GLIP's backbones start")
    resnet = kinds.add_parser("torchvision", help="torchvision's ResNets, of which backbones start")
    for command in (tensorflow, detpro, fvit, glip, swin, resnet):
        command.add_argument("source", type=Path, metavar="IN", help="what was downloaded")
        command.add_argument("folder", type=Path, metavar="OUT", help="folder to write")
    detpro.add_argument(
        "--embeddings", type=Path, required=True, help="(C, 512) text embeddings, .pt or .npy"
    )
    return parser.parse_args(argv)


def read_tensorflow(source: Path) -> dict[str, np.ndarray]:
    """All variables of a checkpoint or a SavedModel."""
    try:
        import tensorflow
    except ImportError as error:
        raise SetupError(
            [f"reading {source} needs TensorFlow ({error}): pip install tensorflow-cpu"]
        ) from error
    prefix = source / VARIABLES if (source / "saved_model.pb").is_file() else source
    try:
        reader = tensorflow.train.load_checkpoint(str(prefix))
    except (ValueError, tensorflow.errors.OpError) as error:
        raise SetupError([f"{prefix} is no TensorFlow checkpoint: {error}"]) from error
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def read_state(path: Path) -> dict[str, Tensor]:
    """Weights of a checkpoint by their names; nothing in it is run."""
    if not path.is_file():
        raise SetupError([f"no file at {path}"])
    return dict(read_checkpoint(str(path), key="IN")["model"])


def read_embeddings(path: Path) -> Any:
    """A tensor, or a list of them."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes of it
        raise SetupError([f"{path} cannot be read as PyTorch weights: {error}"]) from error


def convert_tensorflow(args: argparse.Namespace) -> None:
    converted = convert_variables(read_tensorflow(args.source))
    weights = {key: torch.from_numpy(value) for key, value in converted.weights.items()}
    embeddings = torch.from_numpy(converted.text_embeddings)
    write(args.folder, weights, embeddings, converted.left_out, _files_of(args.source))


def convert_detpro(args: argparse.Namespace) -> None:
    weights, left_out = detpro_weights.convert_weights(read_state(args.source))
    embeddings = detpro_weights.text_embeddings(read_embeddings(args.embeddings))
    write(args.folder, weights, embeddings, left_out, [args.source, args.embeddings])


def convert_fvit(args: argparse.Namespace) -> None:
    converted = fvit_weights.convert_weights(read_state(args.source))
    count = len(converted.text_embeddings)
    if count not in FVIT_DATASETS:
        known = " and ".join(f"{number} ({name})" for number, name in FVIT_DATASETS.items())
        raise SetupError([f"{args.source} has {count} categories; released models have {known}"])
    write(
        args.folder,
        converted.weights,
        converted.text_embeddings,
        converted.left_out,
        [args.source],
        dataset=FVIT_DATASETS[count],
        background=converted.background,
    )


def convert_glip(args: argparse.Namespace) -> None:
    converted = glip_weights.convert_weights(read_state(args.source))
    write_weights(args.folder, converted.weights, converted.left_out, [args.source])


def convert_swin(args: argparse.Namespace) -> None:
    converted = glip_weights.convert_swin(read_state(args.source))
    write_weights(args.folder, converted.weights, converted.left_out, [args.source])


def convert_torchvision(args: argparse.Namespace) -> None:
    weights, left_out = convert_resnet(read_state(args.source))
    write_weights(args.folder, weights, left_out, [args.source])


def _files_of(source: Path) -> list[Path]:
    prefix = source / VARIABLES if source.is_dir() else source
    return sorted(prefix.parent.glob(f"{prefix.name}.*"))


def write(
    folder: Path,
    weights: Mapping[str, Tensor],
    embeddings: Tensor,
    left_out: Mapping[str, str],
    sources: Sequence[Path],
    *,
    dataset: str = DATASET,
    background: Tensor | None = None,
) -> None:
    """vocabulary.safetensors, model.pth and source.json, in this order."""
    categories = get_categories(dataset)
    if len(categories) != len(embeddings):
        raise SetupError(
            [f"there are {len(embeddings)} text embeddings, but {len(categories)} categories"]
        )
    novel = torch.tensor(categories.novel)
    vocabulary = Vocabulary(categories.names, embeddings, novel, background=background)
    vocabulary.save(folder / "vocabulary.safetensors")
    print(f"{len(vocabulary)} names in {folder}")
    write_weights(folder, weights, left_out, sources)


def write_weights(
    folder: Path,
    weights: Mapping[str, Tensor],
    left_out: Mapping[str, str],
    sources: Sequence[Path],
) -> None:
    """model.pth and source.json, in this order."""
    with atomic_write(folder / "model.pth") as temporary:
        torch.save({"model": dict(weights)}, temporary)
    digests = {path.name: sha256_file(path) for path in sources}
    atomic_write_json(folder / "source.json", {"sha256": digests, "left_out": dict(left_out)})
    print(f"{len(weights)} tensors in {folder}")
    for why in sorted(set(left_out.values())):
        print(f"left out: {sum(reason == why for reason in left_out.values())} x {why}")


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "vild-tf": convert_tensorflow,
    "detpro": convert_detpro,
    "fvit": convert_fvit,
    "glip": convert_glip,
    "swin": convert_swin,
    "torchvision": convert_torchvision,
}


@exit_with_message(SetupError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    COMMANDS[args.kind](args)


if __name__ == "__main__":
    main()
