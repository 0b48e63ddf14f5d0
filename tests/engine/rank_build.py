"""A program for torchrun and for Detectron2's launch: builds a small cache in every process."""

from __future__ import annotations

import argparse

import torch
from torch.nn import functional as F

from ovd_d2.cache import DatasetInfo, Manifest, RecordWriter, dataset_fingerprint
from ovd_d2.engine.launching import add_launch_arguments, launch_processes


def build(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    images = [{"file_name": f"{k}.png", "image_id": k, "height": 9, "width": 9} for k in range(5)]
    info = DatasetInfo("toy", dataset_fingerprint(images), 5)
    manifest = Manifest("embeddings", info, "p" * 16, teacher="T-1", embedding_dim=4)
    with RecordWriter(args.output, manifest, images=images, images_per_shard=2) as writer:
        for image_id in writer.waiting_ids:
            if image_id == args.fail:
                raise SystemExit(f"image {image_id} is bad")
            writer.add(image_id, record(image_id))
        writer.finish()


def record(image_id: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(image_id)
    embeddings = F.normalize(torch.randn(3, 4, generator=generator), dim=1)
    boxes = torch.tensor([[0.0, 0.0, 5.0, 5.0]]).repeat(3, 1)
    return {"boxes": boxes, "objectness": torch.ones(3), "embeddings": embeddings}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("output")
    parser.add_argument("--fail", type=int, help="image id that ends its process")
    add_launch_arguments(parser)
    launch_processes(build, parser.parse_args())
