"""Two gloo processes with one image each take the same training step as one with both."""

import os
import socket

import pytest
import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import EventStorage

from tests.programs import SERVER
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary


def fixed_inputs():
    """Two images with given proposals, all of which are sampled: nothing is left to chance."""
    inputs = []
    for seed in (0, 1):
        record = tiny_input(objects=2, cached=3, seed=seed)
        # The same geometry for both: equal counts of sampled regions make means of means equal.
        geometry = tiny_input(objects=2, cached=3, seed=0)
        record["instances"].gt_boxes = geometry["instances"].gt_boxes
        proposals = Instances((64, 64))
        shifted = geometry["instances"].gt_boxes.tensor.repeat(3, 1)
        shifted = shifted + torch.arange(6)[:, None] * 3.0
        proposals.proposal_boxes = Boxes(shifted)
        proposals.objectness_logits = torch.zeros(6)
        record["proposals"] = proposals
        inputs.append(record)
    return inputs


def fixed_model():
    torch.manual_seed(0)
    cfg = tiny_config("vild_ensemble")
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "PrecomputedProposals"
    # Without an RPN the heads alone must reach every level, or DDP would wait for its gradients.
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 100
    cfg.MODEL.ROI_HEADS.POSITIVE_FRACTION = 1.0
    model = build_model(cfg)
    model.set_vocabulary(tiny_vocabulary())
    model.train()
    model.backbone.eval()  # batch statistics would see one image instead of two
    return model


def train_step(model, inputs):
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    plain = model.module if hasattr(model, "module") else model
    heads = plain.roi_heads
    gradients = {
        "text": heads.box_predictor.projection.weight.grad,
        "image": heads.image_head.projection.weight.grad,
        "background": heads.box_predictor.classifier.background.grad,
    }
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def run_rank(path):
    torch.set_num_threads(1)
    model = create_ddp_model(fixed_model(), device_ids=None, broadcast_buffers=False)
    losses, gradients = train_step(model, [fixed_inputs()[comm.get_rank()]])
    reduced = comm.reduce_dict(losses)
    if comm.get_rank() == 0:
        torch.save({"losses": reduced, "gradients": gradients}, path)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 takes NCCL where there is a GPU")
def test_two_processes_take_the_step_of_one(tmp_path):
    losses, gradients = train_step(fixed_model(), fixed_inputs())
    path = tmp_path / "ranks.pt"
    torch.multiprocessing.start_processes(
        _worker, args=(str(path), free_port()), nprocs=2, start_method=SERVER.get_start_method()
    )
    found = torch.load(path, weights_only=True)
    assert found["losses"].keys() == losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(found["losses"][name], loss, rtol=1e-4, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found["gradients"][name], gradient, rtol=1e-3, atol=1e-6)


def _worker(rank, path, port):
    # Detectron2's `launch` asks for CUDA; its process group works as well over gloo.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    run_rank(path)
    torch.distributed.destroy_process_group()
