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
from ovd_d2.errors import SetupError, exit_with_message
from ovd_d2.files import atomic_write, atomic_write_json, sha256_file
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
IN of glip: its .pth; MODEL.WEIGHTS of a config of projects/GLIP, of the same variant, names OUT's
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
    for command in (tensorflow, detpro, fvit, glip):
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


def read_torch(path: Path) -> Any:
    """A .pth of tensors and plain values."""
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
    content = read_torch(args.source)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    weights, left_out = detpro_weights.convert_weights(state)
    path: Path = args.embeddings
    given = torch.from_numpy(np.load(path)) if path.suffix == ".npy" else read_torch(path)
    embeddings = detpro_weights.text_embeddings(given)
    write(args.folder, weights, embeddings, left_out, [args.source, path])


def convert_fvit(args: argparse.Namespace) -> None:
    content = read_torch(args.source)
    state = content.get("state_dict", content) if isinstance(content, Mapping) else {}
    converted = fvit_weights.convert_weights(state)
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
    content = read_torch(args.source)
    state = content.get("model") if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state:
        raise SetupError([f"{args.source} has no weights under 'model': is it a GLIP's?"])
    converted = glip_weights.convert_weights(state)
    write_weights(args.folder, converted.weights, converted.left_out, [args.source])


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
}


@exit_with_message(SetupError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    COMMANDS[args.kind](args)


if __name__ == "__main__":
    main()
