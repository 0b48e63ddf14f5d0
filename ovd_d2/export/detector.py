"""A trained detector as three files: the network, its words, and what a program must know."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import safetensors.torch
import torch
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor, nn

from ovd_d2.errors import SetupError
from ovd_d2.export.batches import IMAGE, over_batch
from ovd_d2.export.network import Network, network_of
from ovd_d2.export.quantization import quantized
from ovd_d2.export.runtime import OnnxDetector, Parity, compare
from ovd_d2.export.tracing import OPSET, trace_one, word_infos
from ovd_d2.files import atomic_write, atomic_write_json, sha256_file
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part
from ovd_d2.systems import system_of
from ovd_d2.vocabulary import Vocabulary

SCHEMA = "ovd_d2.onnx/1"
_TRACED = (160, 224)  # height and width of the image that is traced, pixels


def output_problems(output: Path) -> list[str]:
    """Why a file cannot be the output of an export."""
    if output.suffix != ".onnx":
        return [f"--output {output}: the name of the network's file ends with .onnx"]
    if output.is_dir():
        return [f"--output {output} is a folder: name a file in it"]
    return []


def export_detector(
    cfg: CfgNode, model: nn.Module, output: Path, calibration: Iterable[Tensor] | None = None
) -> Network:
    """Writes `output`, and beside it a .json of what a program must know and a .safetensors of
    the words that the model holds.

    Args:
        cfg: the complete config.
        model: in eval mode, on the processor, with a vocabulary.
        output: the file of the network, `*.onnx`.
        calibration: images as the network sees them, (3, H, W) uint8, for a network in int8, see
            :func:`ovd_d2.export.quantization.quantized`; None: one in float32.

    Raises:
        SetupError: the model cannot be exported.
    """
    if problems := output_problems(output):
        raise SetupError(problems)
    network = network_of(cfg, model)
    vocabulary = vocabulary_of(model)
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *_TRACED), generator=generator, dtype=torch.uint8)
    words = network.words_of(vocabulary)
    graph = trace_one(network, image)
    if calibration is not None:
        arrays = arrays_of(words)
        graph = quantized(graph, ({IMAGE: one.numpy(), **arrays} for one in calibration))
    write_words(output.with_suffix(".safetensors"), words, vocabulary)
    with atomic_write(output) as temporary:
        onnx.save_model(over_batch(graph, word_infos(network)), str(temporary))
    metadata = _metadata(cfg, network, vocabulary, output)
    metadata["precision"] = "float32" if calibration is None else "int8"
    atomic_write_json(output.with_suffix(".json"), metadata)
    return network


def arrays_of(words: Mapping[str, Tensor]) -> dict[str, NDArray]:
    """What onnxruntime takes for tensors."""
    return {name: value.numpy() for name, value in words.items()}


def vocabulary_of(model: nn.Module) -> Vocabulary:
    """What a detector holds.

    Raises:
        SetupError: it holds none.
    """
    part = open_vocabulary_part(model)
    if part is None or part.vocabulary is None:
        raise SetupError(
            ["the model has no vocabulary: set MODEL.OVD.VOCABULARY, or give MODEL.WEIGHTS one"]
        )
    return part.vocabulary


def write_words(output: Path, words: dict[str, Tensor], vocabulary: Vocabulary) -> None:
    """The inputs beside the images, and in the metadata the names they stand for."""
    if set(words) <= {"embeddings", "novel", "background"}:
        vocabulary.save(output)
        return
    with atomic_write(output) as temporary:
        metadata = {"names": json.dumps(vocabulary.names, ensure_ascii=False)}
        safetensors.torch.save_file(words, temporary, metadata=metadata)


def check_parity(
    network: Network, model: nn.Module, detector: OnnxDetector, images: Sequence[Tensor]
) -> Parity:
    """Of the words that the model holds.

    Args:
        network: what was exported.
        model: the same in PyTorch.
        detector: the same in onnxruntime.
        images: (3, H, W) uint8 of any sizes.
    """
    words = network.words_of(vocabulary_of(model))
    arrays = arrays_of(words)
    with torch.no_grad():
        wanted = [network.module(image, *words.values()) for image in images]
    found = [detector(image[None].numpy(), arrays)[0] for image in images]
    named = [dict(zip(network.outputs, (x.numpy() for x in one), strict=True)) for one in wanted]
    return compare(named, found)


def _metadata(
    cfg: CfgNode, network: Network, vocabulary: Vocabulary, output: Path
) -> dict[str, Any]:
    system = system_of(cfg)
    return {
        "schema": SCHEMA,
        "system": None if system is None else system.name,
        "opset": OPSET,
        "sha256": sha256_file(output),
        "channels": cfg.INPUT.FORMAT,
        "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
        "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
        "size_rule": cfg.INPUT.SIZE_RULE,
        "resize": cfg.INPUT.RESIZE,
        "inputs": {"images": ["batch", 3, "height", "width"], **network.shapes},
        "outputs": [*network.outputs, "image_numbers"],
        "names": vocabulary.names,
        "novel": vocabulary.novel.tolist(),
        "teacher": vocabulary.teacher,
        "prompts": vocabulary.prompts,
        **network.settings,
    }
