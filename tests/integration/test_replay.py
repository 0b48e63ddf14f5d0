"""Tuning on new names beside the old training set: one vocabulary, a cache for the old alone."""

from itertools import islice

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from ovd_d2.clip import CLIPTeacher
from ovd_d2.clip.vocabulary_builder import build_vocabulary
from ovd_d2.data.categories import joined_categories
from ovd_d2.data.passengers import DATA_SET
from ovd_d2.engine.build import build_train_loader, in_classes_of, load_training_dicts
from ovd_d2.engine.checks import check_setup
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from ovd_d2.pictograms.dataset.tuning import NEW_NAMES, TuningArguments, prepare_tuning
from ovd_d2.pictograms.teacher import ARCHITECTURE, SHIPPED_TAG
from ovd_d2.structures import cached_proposals_of
from tests.catalog import forget
from tests.integration.conftest import TRAIN, VAL

NEW = "pictograms_v1_tuning_train"


@pytest.fixture(scope="module")
def vocabulary(mini):
    forget(NEW)
    prepare_tuning(
        mini.folder, TuningArguments(train=2, choose=1, val=1, choose_old=12, val_old=12)
    )
    teacher = CLIPTeacher.from_open_clip(ARCHITECTURE, SHIPPED_TAG)
    found = build_vocabulary(joined_categories([TRAIN, NEW]), teacher, prompts="single")
    found.save(mini.folder / "joint.safetensors")
    yield found
    forget(NEW)


@pytest.fixture
def options(mini, vocabulary, tmp_path):
    values = {
        "DATASETS.TRAIN": (TRAIN, NEW),
        "DATASETS.TEST": (VAL,),
        "DATASETS.TRAIN_REPEAT_FACTOR": [[NEW, 3.0]],
        "DATALOADER.SAMPLER_TRAIN": "WeightedTrainingSampler",
        "DATALOADER.NUM_WORKERS": 0,
        "MODEL.WEIGHTS": "",
        "MODEL.OVD.VOCABULARY": str(mini.folder / "joint.safetensors"),
        "MODEL.ROI_HEADS.NUM_CLASSES": len(vocabulary),
        "MODEL.VILD.DISTILLATION.EXCEPT_DATASETS": (NEW,),
        "OUTPUT_DIR": str(tmp_path),
    }

    def joined(**changes):
        changed = {**values, **{key.replace("__", "."): one for key, one in changes.items()}}
        return [one for pair in changed.items() for one in pair]

    return joined


def config(options):
    return load_config("configs/pictograms/vild_ensemble.yaml", options)


def test_names_of_both_sets_are_classes_of_one_vocabulary(vocabulary, options):
    assert vocabulary.names[-len(NEW_NAMES) :] == list(NEW_NAMES)
    cfg = config(options())
    check_setup(cfg, training=True)
    found = {TRAIN: set(), NEW: set()}
    for record in load_training_dicts(cfg):
        found[record[DATA_SET]] |= {one["category_id"] for one in record["annotations"]}
    assert {vocabulary.names[k] for k in found[NEW]} == set(NEW_NAMES)
    assert not found[TRAIN] & found[NEW]
    assert not any(vocabulary.novel[k] for k in found[TRAIN] | found[NEW])


def test_images_of_the_new_set_bring_nothing_to_distil_from(vocabulary, options):
    torch.manual_seed(0)
    cfg = config(options(SOLVER__IMS_PER_BATCH=2))
    model = build_model(cfg).train()
    batches = list(islice(build_train_loader(cfg), 6))
    counts = {TRAIN: [], NEW: []}
    for one in (one for batch in batches for one in batch):
        counts[one[DATA_SET]].append(len(cached_proposals_of(one["instances"])))
    assert sum(counts[NEW]) == 0 < len(counts[NEW]) and max(counts[TRAIN]) > 0
    alone = [one for batch in batches for one in batch if one[DATA_SET] == NEW][:2]
    for batch in (batches[0], alone):
        with EventStorage():
            losses = model(batch)
        sum(losses.values()).backward()
        assert all(one.isfinite() for one in losses.values())
    assert losses["loss_distillation"] == 0 < losses["loss_cls"]


def test_an_image_without_objects_keeps_none(vocabulary):
    nothing = [{DATA_SET: NEW, "annotations": []}, {DATA_SET: NEW}]  # some loaders leave it out
    assert [one["annotations"] for one in in_classes_of(vocabulary, nothing)] == [[], []]


def test_what_does_not_fit_is_told(mini, options):
    wrong = {
        "EXCEPT_DATASETS names 'nobody'": {
            "MODEL__VILD__DISTILLATION__EXCEPT_DATASETS": (NEW, "nobody")
        },
        "names every set of DATASETS.TRAIN": {
            "MODEL__VILD__DISTILLATION__EXCEPT_DATASETS": (TRAIN, NEW)
        },
        "are missing": {"MODEL__VILD__DISTILLATION__EXCEPT_DATASETS": ()},
        rf"8 of the 8 categories of '{NEW}' are not among .* --dataset {TRAIN} {NEW}": {
            "MODEL__OVD__VOCABULARY": str(mini.vocabulary)
        },
        rf"8 of the 88 names in .* are no categories of {TRAIN}, first 'domino tile'": {
            "DATASETS__TRAIN": (TRAIN,)
        },
    }
    for message, changes in wrong.items():
        with pytest.raises(SetupError, match=message):
            check_setup(config(options(**changes)), training=True)
