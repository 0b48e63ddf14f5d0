"""The same next images, augmented alike, wherever a training was stopped."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm

from ovd_d2.data.online import OnlineTeacherLoader, is_resumable
from ovd_d2.data.train_loader import MAX_RETRIES, build_resumable_train_loader
from ovd_d2.engine import build
from tests.tiny import tiny_config

COUNT = 37


def records():
    """Every third image is wider than high; categories 0 and, rarely, 1."""
    return [
        {
            "image_id": k,
            "width": 90 if k % 3 == 0 else 50,
            "height": 60,
            "annotations": [{"category_id": int(k % 10 == 0)}],
        }
        for k in range(COUNT)
    ]


def drawing(record):
    """What a mapper's augmentation draws, from each of the three generators."""
    draws = (random.random(), float(np.random.rand()), float(torch.rand(())))
    return record["image_id"], record["width"] > record["height"], draws


def loader_of(seed=0, mapper=drawing, sampler=None, **options):
    """A loader of a training that was started with that seed."""
    np.random.seed(seed)
    options = {"total_batch_size": 4, **options}
    sampler = sampler() if sampler is not None else None
    return build_resumable_train_loader(records(), mapper=mapper, sampler=sampler, **options)


def samples(loader, batches=25):
    return [sample for batch in islice(iter(loader), batches) for sample in batch]


def repeat_factors():
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records(), 0.4)
    return RepeatFactorTrainingSampler(factors)


SAMPLERS = {
    "default": None,
    "shuffle": lambda: TrainingSampler(COUNT),
    "repeat factors": repeat_factors,
    "subset": lambda: RandomSubsetTrainingSampler(COUNT, 0.5),
}


@pytest.mark.parametrize("grouping", [True, False])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_next_hundred_samples_are_those_of_a_run_that_did_not_stop(sampler, grouping):
    options = {"sampler": SAMPLERS[sampler], "aspect_ratio_grouping": grouping}
    whole = loader_of(**options)
    batches = iter(whole)
    for stop in (0, 1, 13):
        while whole.state_dict()["batches"] < stop:
            next(batches)
        resumed = loader_of(seed=99, **options)  # as with SEED -1: another draw of seeds
        resumed.load_state_dict(whole.state_dict())
        found = samples(resumed)
        assert len(found) == 100
        assert found == samples(loader_of(**options), stop + 25)[4 * stop :]


@pytest.mark.parametrize("grouping", [True, False])
def test_workers_change_nothing_but_who_reads(grouping):
    alone = samples(loader_of(aspect_ratio_grouping=grouping))
    assert samples(loader_of(aspect_ratio_grouping=grouping, num_workers=2)) == alone
    early = loader_of(aspect_ratio_grouping=grouping, num_workers=2, prefetch_factor=3)
    samples(early, 5)  # workers are ahead by now: what they hold does not count as handed out
    late = loader_of(seed=99, aspect_ratio_grouping=grouping, num_workers=1)
    late.load_state_dict(early.state_dict())
    assert samples(late, 20) == alone[20:]


def test_the_order_is_detectron2s_and_its_groups():
    ids = [sample[0] for sample in samples(loader_of(aspect_ratio_grouping=False))]
    np.random.seed(0)
    assert ids == list(islice(iter(TrainingSampler(COUNT)), 100))
    batches = list(islice(iter(loader_of()), 25))
    assert all(len({wide for _, wide, _ in batch}) == 1 for batch in batches)
    assert {wide for batch in batches for _, wide, _ in batch} == {True, False}
    # An image that waits for its group is not lost: an epoch's images are each handed out.
    assert {one[0] for batch in batches for one in batch} == set(range(COUNT))


def test_each_draw_augments_anew_and_each_seed():
    first = samples(loader_of(), 60)
    assert len({draws for _, _, draws in first}) == len(first)
    assert samples(loader_of(seed=1), 60) != first
    assert samples(loader_of(), 60) == first


def test_ranks_share_the_images_and_no_random_number(monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    seen = []
    for rank in (0, 1):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(comm, "shared_random_seed", lambda: 5)
        loader = loader_of(aspect_ratio_grouping=False)
        assert loader.batch_size == 2
        seen.append(samples(loader, 9))  # an epoch, one image short
        resumed = loader_of(aspect_ratio_grouping=False)
        resumed.load_state_dict({**loader.state_dict(), "batches": 5})
        assert samples(resumed, 4) == seen[-1][10:]
    first, second = ({one[0] for one in part} for part in seen)
    assert not first & second and len(first | second) == 36
    draws = [{one[2] for one in part} for part in seen]
    assert not draws[0] & draws[1]
    with pytest.raises(ValueError, match="total_batch_size is 3: not a multiple .* 2"):
        loader_of(total_batch_size=3)


def test_the_models_random_numbers_are_left_alone():
    loader = loader_of()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = random.random(), np.random.rand(), torch.rand(2).tolist()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    samples(loader, 3)
    assert (random.random(), np.random.rand(), torch.rand(2).tolist()) == expected


def none_for_odd_ids(record):
    return None if record["image_id"] % 2 else drawing(record)


def test_another_image_where_the_mapper_has_none():
    found = samples(loader_of(mapper=none_for_odd_ids))
    assert all(image_id % 2 == 0 for image_id, *_ in found)
    assert samples(loader_of(mapper=none_for_odd_ids, num_workers=2)) == found
    plain = samples(loader_of())
    assert [a for a, b in zip(plain, found, strict=True) if a[0] % 2 == 0 and a != b] == []
    with pytest.raises(RuntimeError, match=f"None for {MAX_RETRIES} images in a row"):
        samples(loader_of(mapper=lambda record: None), 1)


def test_iterating_again_goes_on():
    loader = loader_of()
    assert samples(loader, 2) + samples(loader, 3) == samples(loader_of(), 5)


def test_a_collate_function_and_no_mapper():
    loader = loader_of(mapper=None, collate_fn=lambda batch: {r["image_id"] for r in batch})
    batch = next(iter(loader))
    assert isinstance(batch, set) and len(batch) == 4


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield {}


def test_an_iterable_data_set_is_refused():
    with pytest.raises(TypeError, match="Stream is an iterable data set"):
        build_resumable_train_loader(Stream(), mapper=None, total_batch_size=2)


@pytest.mark.parametrize("name", ["TrainingSampler", "RandomSubsetTrainingSampler"])
def test_the_config_chooses_the_sampler(name):
    cfg = tiny_config()
    cfg.DATALOADER.SAMPLER_TRAIN = name
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    loader = build_resumable_train_loader(cfg, mapper=drawing, dataset=records())
    assert type(loader.sampler).__name__ == name
    assert loader.batch_size == cfg.SOLVER.IMS_PER_BATCH
    cfg.DATALOADER.SAMPLER_TRAIN = "NoSampler"
    with pytest.raises(ValueError, match="NoSampler"):
        build_resumable_train_loader(cfg, mapper=drawing, dataset=records())


def test_an_online_teacher_hands_the_state_through():
    inner = loader_of()
    online = OnlineTeacherLoader(inner, embed=lambda *_: None)
    assert is_resumable(online)
    online.load_state_dict({**inner.state_dict(), "batches": 6})
    assert inner.state_dict()["batches"] == online.state_dict()["batches"] == 6
    plain = OnlineTeacherLoader([], embed=lambda *_: None)
    plain.load_state_dict({"batches": 3})
    assert plain.state_dict() == {}


def test_the_loader_of_a_training_is_resumable(monkeypatch):
    monkeypatch.setattr(build, "load_training_dicts", lambda _: records())
    assert is_resumable(build.build_train_loader(tiny_config()))
