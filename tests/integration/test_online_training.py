"""Training online and from a float32 cache take the same course, step by step."""

import json

import pytest
import torch
from detectron2.data import DatasetCatalog

from ovd_d2.cache import EmbeddingCache
from ovd_d2.clip import CLIPTeacher
from ovd_d2.engine.build import build_train_loader
from ovd_d2.engine.run import train
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.structures import cached_proposals_of
from tests.integration.conftest import TRAIN
from tests.integration.test_plugging_in_lazy import run as run_lazy
from tests.integration.test_plugging_in_yaml import mini_config
from tests.proposal_stores import random_proposals, write_cache, write_proposals


@pytest.fixture(scope="module")
def stores(mini, tmp_path_factory):
    """Proposals of the mini Pictograms, where configs look for them, and their float32 cache."""
    dicts = DatasetCatalog.get(TRAIN)
    tensors = {
        one["image_id"]: random_proposals(
            8 * (number % 3), one["height"], one["width"], one["image_id"], smallest=20.0
        )
        for number, one in enumerate(dicts)
    }
    folder = mini.folder / "pictograms_v1"
    proposals = write_proposals(folder / "proposals", dicts, tensors, dataset=TRAIN)
    teacher = CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG)
    return write_cache(tmp_path_factory.mktemp("stores") / "cache", dicts, proposals, teacher)


def losses_of(output):
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "loss" in k} for line in lines]


def model_of(output):
    return torch.load(output / "model_final.pth", weights_only=True)["model"]


def train_jittered(name, output, arguments, *options):
    """Three iterations under large-scale jitter, from noise."""
    fixed = ["MODEL.WEIGHTS", "", "DATASETS.TEST", (), "SOLVER.MAX_ITER", 3]
    fixed += ["INPUT.LSJ.ENABLED", True, "INPUT.LSJ.SIZE", 96]
    train(mini_config(name, output, *fixed, *options), arguments)


def test_the_course_is_that_of_a_float32_cache(stores, tmp_path, arguments):
    train_jittered("vild_online", tmp_path / "online", arguments)
    cache = ("MODEL.VILD.DISTILLATION.CACHE", str(stores))
    train_jittered("vild", tmp_path / "cached", arguments, *cache)
    online, cached = losses_of(tmp_path / "online"), losses_of(tmp_path / "cached")
    assert len(online) == len(cached) > 0
    for one, other in zip(online, cached, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
        assert other["loss_distillation"] > 0
    expected = model_of(tmp_path / "cached")
    for name, value in model_of(tmp_path / "online").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_a_lazy_config_trains_and_refuses_another_teacher(stores, tmp_path):
    run_lazy("lazy_vild_online", tmp_path)
    assert losses_of(tmp_path)[0]["loss_distillation"] > 0
    with pytest.raises(SystemExit, match="share one teacher"):
        run_lazy("lazy_vild_online", tmp_path, "wrap_loader.teacher.pretrained=shipped-base")
    with pytest.raises(SystemExit, match=r"wrap_loader: .* neither a local file nor"):
        run_lazy("lazy_vild_online", tmp_path, "wrap_loader.teacher.pretrained=shiped")


def test_each_rank_embeds_its_own_images(stores, tmp_path, monkeypatch):
    monkeypatch.setattr("detectron2.utils.comm.shared_random_seed", lambda: 0)
    for module in ("detectron2.utils.comm", "detectron2.data.build"):
        monkeypatch.setattr(f"{module}.get_world_size", lambda: 2)
    cache, seen = EmbeddingCache(stores), []
    for rank in (0, 1):
        monkeypatch.setattr("detectron2.utils.comm.get_rank", lambda rank=rank: rank)
        cfg = mini_config("vild_online", tmp_path, "SOLVER.IMS_PER_BATCH", 12)
        for record in next(iter(build_train_loader(cfg))):
            seen.append(record["image_id"])
            expected = cache[record["image_id"]].embeddings  # nothing is cropped away
            found = cached_proposals_of(record["instances"]).teacher_embeddings
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(seen) == len(set(seen)) == 12
