"""The text encoder's weights come from a folder of `transformers`, whole and of its sizes."""

from dataclasses import replace

import pytest
import torch

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
