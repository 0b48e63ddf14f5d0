"""The text encoder's weights: a folder of `transformers` of its sizes, or a checkpoint."""

from dataclasses import replace

import pytest
import torch

from ovd_d2.engine.checkpoint import SafeCheckpointer
from ovd_d2.errors import SetupError
from ovd_d2.projects.glip.text import TextEncoder
from tests.tiny_glip import SIZES


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("bert")
    TextEncoder(SIZES).bert.save_pretrained(path)
    return path


def test_weights_come_from_a_folder(folder):
    one, other = (TextEncoder(SIZES, pretrained=str(folder)).eval() for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    ids = torch.tensor([[2, 5, 7, 3]])
    assert one(ids, ids > 0).shape == (1, 4, SIZES.width)


@pytest.mark.parametrize(
    ("sizes", "where"),
    [(replace(SIZES, width=48), ""), (replace(SIZES, layers=2), ""), (SIZES, "nothing here")],
)
def test_other_sizes_and_missing_folders_are_told(folder, sizes, where):
    with pytest.raises(SetupError, match="MODEL.GLIP.BERT.PRETRAINED"):
        TextEncoder(sizes, pretrained=where or str(folder))


class Detector(torch.nn.Module):
    """As GLIP: a backbone beside the text encoder."""

    def __init__(self, **options):
        super().__init__()
        self.backbone = torch.nn.Linear(2, 2)
        self.text_encoder = TextEncoder(SIZES, **options)


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_weights_of_a_backbone_alone_leave_the_text_encoder_pretrained(folder):
    model = Detector(pretrained=str(folder), until_loaded=True)
    expected = TextEncoder(SIZES, pretrained=str(folder))
    assert not same(model.text_encoder, expected)
    found = model.load_state_dict(Detector().backbone.state_dict(prefix="backbone."), strict=False)
    assert found.missing_keys == [] and same(model.text_encoder, expected)


def test_a_folder_that_is_missing_is_told_alone(tmp_path):
    weights = tmp_path / "backbone.pth"
    torch.save({"model": Detector().backbone.state_dict(prefix="backbone.")}, weights)
    model = Detector(pretrained="nothing here", until_loaded=True)
    with pytest.raises(SetupError) as found:
        SafeCheckpointer(model).load(str(weights))
    (problem,) = found.value.problems
    assert problem.startswith("MODEL.GLIP.BERT.PRETRAINED 'nothing here'")


def test_a_whole_checkpoint_needs_no_folder():
    whole = Detector()
    model = Detector(pretrained="nothing here", until_loaded=True)
    model.load_state_dict(whole.state_dict())
    assert same(model, whole)


def test_half_a_text_encoder_is_told():
    state = Detector().state_dict()
    lost = state.popitem()[0]
    model = Detector(pretrained="nothing here", until_loaded=True)
    assert model.load_state_dict(state, strict=False).missing_keys == [lost]
