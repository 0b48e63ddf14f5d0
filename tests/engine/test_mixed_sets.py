"""Training sets mixed by weights, and sets whose categories are their own."""

from collections import Counter
from itertools import islice

import pytest

from ovd_d2.engine import build
from ovd_d2.engine.build import (
    build_train_loader,
    repeat_factor_problems,
    repeat_factor_sampler,
    weighted_sampler,
)
from ovd_d2.engine.checks import config_problems
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Categories
from tests.tiny import tiny_config


@pytest.fixture
def cfg():
    cfg = tiny_config("vild_text")
    cfg.DATASETS.TRAIN = ("large", "small")
    cfg.DATALOADER.SAMPLER_TRAIN = "WeightedTrainingSampler"
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    cfg.SOLVER.IMS_PER_BATCH = 4
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["small", 3.0], ["large", 0.5]]
    return cfg


def records():
    """Of 40 and 10 images."""
    return [
        {"image_id": k, "data_set": "large" if k < 40 else "small", "width": 9, "height": 9}
        for k in range(50)
    ]


def test_images_are_seen_as_often_as_their_set_says(cfg):
    seen = Counter(islice(iter(weighted_sampler(cfg, records())), 5000))
    share = sum(count for k, count in seen.items() if k >= 40) / 5000
    assert abs(share - 30 / 50) < 0.02  # 10 * 3 beside 40 * 0.5
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = []
    seen = Counter(islice(iter(weighted_sampler(cfg, records())), 500))
    assert set(seen.values()) == {10}


def test_what_is_rare_is_counted_by_names(cfg, monkeypatch):
    # by bare ids the small set's "heron" (0) was as frequent as the large set's "dog" (0)
    names = {"large": ["dog", "cat"], "small": ["heron", "dog"]}
    monkeypatch.setattr(build, "get_categories", lambda one: Categories(names[one], [False] * 2))
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    images = records()
    for one in images[:39]:
        one["annotations"] = [{"category_id": 0}]  # dogs; the last of the large set is empty
    images[40]["annotations"] = [{"category_id": 0}, {"category_id": 1}]
    images[41]["annotations"] = [{"category_id": 1}]
    seen = Counter(islice(iter(repeat_factor_sampler(cfg, images)), 20000))
    assert seen[40] / seen[0] == pytest.approx((0.5 / (1 / 50)) ** 0.5, rel=0.02)
    assert abs(seen[41] - seen[0]) <= 1 and abs(seen[39] - seen[0]) <= 1


def test_a_mixture_is_resumed(cfg, monkeypatch):
    monkeypatch.setattr(build, "load_training_dicts", lambda cfg: records())
    monkeypatch.setattr(build, "passengers_of", lambda cfg: ())

    def mapper(record):
        return record["image_id"]

    def loader():
        return build_train_loader(cfg, mapper=mapper)

    whole = loader()
    expected = list(islice(iter(whole), 30))
    late = loader()
    late.load_state_dict({**whole.state_dict(), "batches": 11})
    assert list(islice(iter(late), 19)) == expected[11:]


def test_factors_that_cannot_be_meant(cfg):
    cfg.DATASETS.TRAIN_REPEAT_FACTOR = [["smal", 2.0], ["large", 0.0]]
    first, second = repeat_factor_problems(cfg)
    assert first == (
        "DATASETS.TRAIN_REPEAT_FACTOR names 'smal', which is not in DATASETS.TRAIN "
        "('large', 'small')"
    )
    assert second == "DATASETS.TRAIN_REPEAT_FACTOR of 'large' is 0.0, expected more than 0"
    assert {first, second} <= set(config_problems(cfg, training=True))
    with pytest.raises(SetupError, match="names 'smal'"):
        weighted_sampler(cfg, records())
    cfg.DATALOADER.SAMPLER_TRAIN = "TrainingSampler"  # the key is not read
    assert repeat_factor_problems(cfg) == []


def test_a_size_rule_that_there_is_not(cfg):
    cfg.INPUT.SIZE_RULE = "floor"
    message = "INPUT.SIZE_RULE: 'floor' is not one of rounded, truncated"
    assert message in list(config_problems(cfg, training=False))
