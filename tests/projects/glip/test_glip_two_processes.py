"""Two gloo processes with one image each take the training step of one with both: all of GLIP."""

import os

import pytest
import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm

from tests.integration.test_distributed import free_port
from tests.programs import SERVER
from tests.tiny_glip import tiny_glip, training_image

BOXES = (3, 0)  # of the two images: one process has nothing to find
TOKENS = (9, 6)  # captions of different lengths


def images():
    counts = zip(BOXES, TOKENS, strict=True)
    return [
        training_image(seed, boxes=boxes, tokens=tokens)
        for seed, (boxes, tokens) in enumerate(counts)
    ]


def train_step(model, inputs):
    losses = model(inputs)
    sum(losses.values()).backward()
    plain = model.module if hasattr(model, "module") else model
    gradients = {name: one.grad for name, one in plain.named_parameters()}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def work(rank, path, port):
    # Detectron2's `launch` asks for CUDA; its process group works as well over gloo.
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    torch.set_num_threads(1)
    model = create_ddp_model(tiny_glip().train(), device_ids=None, broadcast_buffers=False)
    losses, gradients = train_step(model, [images()[rank]])
    reduced = comm.reduce_dict(losses)
    if rank == 0:
        torch.save({"losses": reduced, "gradients": gradients}, path)
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 takes NCCL where there is a GPU")
def test_two_processes_take_the_step_of_one(tmp_path):
    losses, gradients = train_step(tiny_glip().train(), images())
    assert all(one is not None for one in gradients.values())
    path = tmp_path / "ranks.pt"
    torch.multiprocessing.start_processes(
        work, args=(str(path), free_port()), nprocs=2, start_method=SERVER.get_start_method()
    )
    found = torch.load(path, weights_only=True)
    assert found["losses"].keys() == losses.keys() and losses["loss_box"] > 0
    for name, loss in losses.items():
        torch.testing.assert_close(found["losses"][name], loss, rtol=1e-4, atol=1e-6)
    scale = max(one.abs().max() for one in gradients.values())
    for name, gradient in gradients.items():
        close = torch.allclose(found["gradients"][name], gradient, rtol=1e-3, atol=1e-6 * scale)
        assert close, name
