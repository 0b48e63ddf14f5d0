"""The examples of projects/CLIPSelf/examples do what docs/segmentation.md says."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ovd_d2.clip.dense import DenseViT
from tests.tiny_vits import DIM, FAMILIES, PATCH, random_images, tiny_clip

EXAMPLES = Path(__file__).parents[4] / "projects" / "CLIPSelf" / "examples"
CostMapHead = runpy.run_path(str(EXAMPLES / "cost_map_head.py"))["CostMapHead"]
MaskPoolingHead = runpy.run_path(str(EXAMPLES / "mask_pooling_head.py"))["MaskPoolingHead"]


def names(count=3):
    return F.normalize(random_images(count, DIM, seed=5), dim=1)


def dense_of(family):
    return DenseViT(tiny_clip(family).visual).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cost_map_head_learns_and_its_backbone_does_not(family):
    dense, images = dense_of(family), random_images(2, 3, 40, 32)
    head = CostMapHead(dense, channels=8)
    before = {name: one.clone() for name, one in dense.state_dict().items()}
    assert not [name for name in head.state_dict() if "visual" in name]
    target = torch.zeros(2, 40, 32, dtype=torch.long)
    target[:, 20:] = 1
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    losses = []
    for _ in range(5):
        loss = F.cross_entropy(head(images, names()), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(torch.equal(one, before[name]) for name, one in dense.state_dict().items())


def test_a_cost_map_head_takes_any_vocabulary():
    head, images = CostMapHead(dense_of(FAMILIES[0]), channels=8), random_images(1, 3, 32, 32)
    many = head(images, names(7))
    assert many.shape == (1, 7, 32, 32)
    assert torch.allclose(head(images, names(7)[4:]), many[:, 4:], atol=1e-5)


class Halves(nn.Module):
    """Two masks, left and right, of every image, and an embedding for each."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Parameter(names(3)[:2])

    def forward(self, images):
        logits = torch.full((2, *images.shape[2:]), -20.0)
        logits[0, :, : images.shape[3] // 2] = logits[1, :, images.shape[3] // 2 :] = 20
        return [(logits, self.embeddings) for _ in images]


def test_masks_are_named_by_what_is_under_them():
    images = random_images(1, 3, 16, 32)
    vectors = names(3)

    def dense(images):  # the left half looks like name 2, the right one like name 1
        columns = torch.arange(images.shape[3] // PATCH) < images.shape[3] // PATCH // 2
        cells = torch.where(columns[:, None], vectors[2], vectors[1])  # (w, D)
        return cells.T[None, :, None].expand(len(images), -1, images.shape[2] // PATCH, -1)

    masks, probabilities = MaskPoolingHead(dense, Halves(), share=1.0)(images, vectors)[0]
    assert probabilities.argmax(dim=1).tolist() == [2, 1]
    assert masks[0, :, :16].all() and not masks[0, :, 16:].any()
    own = MaskPoolingHead(dense, Halves(), share=0.0)(images, vectors)[0][1]
    assert own.argmax(dim=1).tolist() == [0, 1]  # the generator's embeddings alone


def test_a_mask_head_trains_its_generator():
    head = MaskPoolingHead(dense_of(FAMILIES[1]), Halves())
    probabilities = head(random_images(2, 3, 32, 32), names())[1][1]
    probabilities[:, 0].sum().backward()
    assert head.generator.embeddings.grad.abs().sum() > 0
    assert list(head.state_dict()) == ["generator.embeddings"]
