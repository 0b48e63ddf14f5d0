"""Two gloo processes with half of the images each report what one process reports."""

from __future__ import annotations

import dataclasses
import json
import os
import socket

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from evaluation_scenes import HEIGHT, NAMES, WIDTH, feed, make_dataset, noisy_detections
from PIL import Image

from ovd_d2.evaluation import OpenVocabularyLVISEvaluator
from ovd_d2.evaluation.protocols import FEDERATED, FIXED, Protocol
from tests.programs import SERVER

IDS = list(range(1, len(NAMES) + 1))
NAME = "ov_two_processes"
PROTOCOLS = {"federated": FEDERATED, "fixed": dataclasses.replace(FIXED, per_category=4)}


def evaluate(folder: str, rank: int, world: int, protocol: Protocol = FEDERATED):
    dataset = make_dataset(IDS, images=6)
    path = os.path.join(folder, f"{rank}_of_{world}.json")
    with open(path, "w") as stream:
        json.dump(dataset, stream)
    DatasetCatalog.register(NAME, list)
    MetadataCatalog.get(NAME).set(json_file=path, thing_classes=NAMES)
    output = os.path.join(folder, f"out_{world}")
    evaluator = OpenVocabularyLVISEvaluator(NAME, output_dir=output, failures=4, protocol=protocol)
    pairs = [
        ({**one, "file_name": os.path.join(folder, f"{one['image_id']}.png")}, found)
        for one, found in noisy_detections(dataset, IDS)
    ]
    metrics = feed(evaluator, pairs[rank::world])
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    return metrics


def _worker(rank: int, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    metrics = {name: evaluate(folder, rank, 2, protocol) for name, protocol in PROTOCOLS.items()}
    if rank == 0:
        plain = {name: {task: dict(v) for task, v in m.items()} for name, m in metrics.items()}
        torch.save(plain, f"{folder}/both.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 takes NCCL where there is a GPU")
def test_two_processes_report_what_one_reports(tmp_path):
    for k in range(1, 7):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 20 * k, dtype=np.uint8)).save(
            tmp_path / f"{k}.png"
        )
    expected = {name: evaluate(str(tmp_path), 0, 1, one) for name, one in PROTOCOLS.items()}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.start_processes(
        _worker, args=(str(tmp_path), port), nprocs=2, start_method=SERVER.get_start_method()
    )
    both = torch.load(tmp_path / "both.pt", weights_only=True)
    for name in PROTOCOLS:
        for task in ("bbox", "segm"):
            assert both[name][task] == pytest.approx(expected[name][task], nan_ok=True)
    assert expected["federated"]["bbox"]["AP"] != expected["fixed"]["bbox"]["AP"]
    # The images of both processes are known: the same crops, none of them grey
    sheets = [
        (tmp_path / f"out_{world}" / "failures" / "missed_objects.png").read_bytes()
        for world in (1, 2)
    ]
    assert sheets[0] == sheets[1]
