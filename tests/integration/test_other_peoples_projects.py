"""Heads, vocabulary and cached proposals in code that was not made for them."""

import json

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data import transforms as T
from detectron2.engine import DefaultPredictor, DefaultTrainer, default_setup
from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

import ovd_d2
from ovd_d2.engine import OpenVocabularyTrainer
from ovd_d2.engine.build import build_train_loader, get_base_dataset_dicts
from ovd_d2.errors import SetupError
from ovd_d2.modeling.open_vocabulary import open_vocabulary_part
from ovd_d2.vocabulary import Vocabulary
from tests.integration.conftest import TRAIN, VAL
from tests.integration.test_plugging_in_yaml import mini_config


@META_ARCH_REGISTRY.register()
class SomebodysRCNN(GeneralizedRCNN):
    """As in a semi-supervised project: an argument more than Detectron2's."""

    def forward(self, batched_inputs, branch="supervised"):
        assert branch == "supervised"
        return super().forward(batched_inputs)


class SomebodysMapper(DatasetMapper):
    """Their augmentation, and a key of their own."""

    def __init__(self, cfg, is_train):
        super().__init__(cfg, is_train, augmentations=[T.Resize((80, 80)), T.RandomFlip()])

    def __call__(self, dataset_dict):
        return {**super().__call__(dataset_dict), "theirs": True}


class SomebodysTrainer(DefaultTrainer):
    @classmethod
    def build_train_loader(cls, cfg):
        return build_train_loader(cfg, mapper=SomebodysMapper(cfg, True))


class LoaderOfTheirOwn(DefaultTrainer):
    base_only = True

    @classmethod
    def build_train_loader(cls, cfg):
        names = cfg.DATASETS.TRAIN
        dicts = (get_base_dataset_dicts if cls.base_only else get_detection_dataset_dicts)(names)
        return build_detection_train_loader(cfg, dataset=dicts)


def losses_of(output):
    written = (output / "metrics.json").read_text().splitlines()
    return {key for line in written for key in json.loads(line) if key.startswith("loss")}


def somebodys_config(output, *options):
    cfg = mini_config("vild", output, "MODEL.WEIGHTS", "", "DATASETS.TEST", (), *options)
    cfg.MODEL.META_ARCHITECTURE = "SomebodysRCNN"
    cfg.SOLVER.OPTIMIZER = "SGD"  # DefaultTrainer's
    cfg.SOLVER.BASE_LR = 1e-4
    return cfg


def trained_by(trainer_class, cfg, arguments):
    default_setup(cfg, arguments)
    trainer = trainer_class(cfg)
    trainer.train()
    return trainer


def test_cached_proposals_reach_the_heads_of_any_meta_architecture(mini, tmp_path, arguments):
    cfg = somebodys_config(tmp_path)
    batch = next(iter(SomebodysTrainer.build_train_loader(cfg)))
    assert all(one["theirs"] and one["image"].shape == (3, 80, 80) for one in batch)
    trained_by(SomebodysTrainer, cfg, arguments)
    assert {"loss_cls", "loss_mask", "loss_distillation"} <= losses_of(tmp_path)


def test_a_mapper_without_augmentations_is_told_what_to_do(mini, tmp_path):
    with pytest.raises(
        TypeError, match=r"function has no attribute 'augmentations'.*DatasetMapper"
    ):
        build_train_loader(somebodys_config(tmp_path), mapper=lambda record: record)


def test_detectron2s_own_predictor_has_the_vocabulary(mini, tmp_path, arguments):
    cfg = somebodys_config(tmp_path, "MODEL.VILD.VARIANT", "vild_text")
    trained_by(SomebodysTrainer, cfg, arguments)
    known = Vocabulary.load(str(mini.vocabulary))
    five = known.select(known.names[10:15])
    five.save(tmp_path / "five.safetensors")
    cases = {"": known.names, str(tmp_path / "five.safetensors"): five.names}
    for path, names in cases.items():  # the checkpoint's; the config's
        again = cfg.clone()
        again.defrost()
        again.MODEL.OVD.VOCABULARY = path
        again.MODEL.ROI_HEADS.NUM_CLASSES = 3  # what another project leaves there
        again.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
        predictor = DefaultPredictor(again)
        assert open_vocabulary_part(predictor.model).vocabulary.names == names
        found = predictor((torch.rand(96, 96, 3) * 255).byte().numpy())["instances"]
        assert found.pred_classes.max() < len(names)


def plugged_config(output, vocabulary):
    """A config that is Detectron2's, but for two lines and the path of the vocabulary."""
    cfg = get_cfg()
    ovd_d2.add_ovd_config(cfg)
    cfg.merge_from_list(
        [
            *("MODEL.OVD.VOCABULARY", str(vocabulary), "MODEL.META_ARCHITECTURE", "SomebodysRCNN"),
            *("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone", "MODEL.MASK_ON", True),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "MODEL.ROI_HEADS.IN_FEATURES", ["p2"]),
            *("MODEL.RPN.IN_FEATURES", ["p2", "p3"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32], [64]]),
            *("MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead", "MODEL.ROI_BOX_HEAD.NUM_FC", 1),
            *("MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead"),
            *("MODEL.ROI_MASK_HEAD.NUM_CONV", 1, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu"),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.MAX_ITER", 1, "SOLVER.IMS_PER_BATCH", 2),
            *("SOLVER.BASE_LR", 1e-4, "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(output)),
            *("DATASETS.TRAIN", (TRAIN,), "DATASETS.TEST", (), "SEED", 1),
        ]
    )
    ovd_d2.plug(cfg)
    return cfg


def test_two_lines_make_a_project_open(mini, tmp_path, arguments):
    cfg = plugged_config(tmp_path, mini.vocabulary)
    assert cfg.MODEL.ROI_HEADS.NAME == "OpenVocabularyROIHeads"
    assert (cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.OVD.EMBEDDING_DIM) == (80, 64)
    trainer = trained_by(LoaderOfTheirOwn, cfg, arguments)
    part = open_vocabulary_part(trainer.model)
    assert part is trainer.model.roi_heads
    assert len(part.vocabulary) == 80
    assert {"loss_cls", "loss_mask"} <= losses_of(tmp_path)


def test_novel_objects_of_a_foreign_loader_are_refused(mini, tmp_path, arguments, monkeypatch):
    monkeypatch.setattr(LoaderOfTheirOwn, "base_only", False)
    cfg = plugged_config(tmp_path, mini.vocabulary)
    cfg.DATASETS.TRAIN = (VAL,)  # whose novel objects are annotated
    cfg.SOLVER.MAX_ITER = 15
    with pytest.raises(ValueError, match=r"objects of the novel category '.*build_train_loader"):
        trained_by(LoaderOfTheirOwn, cfg, arguments)


def test_what_cannot_be_plugged(mini, tmp_path):
    cfg = plugged_config(tmp_path, mini.vocabulary)
    cfg.MODEL.OVD.VOCABULARY = ""
    with pytest.raises(SetupError, match="MODEL.OVD.VOCABULARY is empty"):
        ovd_d2.plug(cfg)
    cfg.MODEL.OVD.VOCABULARY = str(mini.vocabulary)
    cfg.MODEL.ROI_HEADS.NAME = "Res5ROIHeads"
    with pytest.raises(SetupError, match=r"Res5ROIHeads has a fixed list.*OpenVocabularyROIHeads"):
        ovd_d2.plug(cfg)


BROKEN = {
    "another teacher's cache": ("MODEL.OVD.EMBEDDING_DIM", 32),
    "number of classes": ("MODEL.ROI_HEADS.NUM_CLASSES", 79),
    "a mask per category": ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False),
    "novel annotations": ("DATALOADER.FILTER_NOVEL_ANNOTATIONS", False),
    "optimizer": ("SOLVER.OPTIMIZER", "Adam"),
    "heads without words": ("MODEL.ROI_HEADS.NAME", "StandardROIHeads"),
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_the_trainer_looks_at_the_set_up_whoever_calls_it(change, mini, tmp_path):
    cfg = mini_config("vild", tmp_path, "MODEL.WEIGHTS", "", *change)
    with pytest.raises(SetupError):
        OpenVocabularyTrainer(cfg)


def test_looking_changes_no_random_number(mini, tmp_path):
    cfg = mini_config("vild_text", tmp_path, "MODEL.WEIGHTS", "", "DATASETS.TEST", (VAL,))
    torch.manual_seed(0)
    checked = OpenVocabularyTrainer(cfg).model.state_dict()
    torch.manual_seed(0)
    unchecked = OpenVocabularyTrainer(cfg, check=False).model.state_dict()
    assert [
        name for name, value in checked.items() if not torch.equal(value, unchecked[name])
    ] == []
