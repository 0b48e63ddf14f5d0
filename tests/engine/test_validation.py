"""Losses over test images leave no trace, and the best checkpoint is the best."""

import copy

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, get_event_storage
from timm.layers import DropPath
from torch import nn

from ovd_d2.engine.checkpoint import save_weights
from ovd_d2.engine.checkpoint_files import find_last_good, write_checkpoint
from ovd_d2.engine.hooks import BestCheckpoint
from ovd_d2.engine.validation import (
    selection_notices,
    selection_of,
    selection_problems,
    validation_losses,
)
from ovd_d2.errors import SetupError
from tests.processes import run_ranks
from tests.tiny import tiny_config, tiny_input, tiny_vocabulary


class Fake(nn.Module):
    """Its loss is the mean input where norms and dropout are as in evaluation."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.BatchNorm1d(1, eps=1e-9), nn.Dropout(0.9), DropPath(0.9))

    def forward(self, batch):
        assert self.training and not torch.is_grad_enabled()
        get_event_storage().put_scalar("of_validation", 1.0)
        values = torch.tensor([[one["value"]] for one in batch])
        losses = {"loss_a": self.layers(values).mean()}
        return {**losses, "loss_b": values.new_tensor(1.0)} if len(batch) > 1 else losses


def batches(*sizes):
    values = iter(range(1, 100))
    return [[{"value": float(next(values))} for _ in range(size)] for size in sizes]


def test_means_over_images_in_the_mode_of_evaluation():
    model = Fake().eval()
    model.layers[1].train()
    with EventStorage() as storage:
        losses = validation_losses(model, batches(1, 2, 1))
    # (1 + 2 + 3 + 4) / 4; loss_b is of two of the four images
    assert losses == pytest.approx({"loss_a": 2.5, "loss_b": 0.5, "total_loss": 3.0})
    assert storage.latest() == {}
    assert [one.training for one in model.modules()] == [False, False, False, True, False]
    assert model.layers[0].running_mean.item() == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 takes NCCL where there is a GPU")
def test_means_over_the_images_of_all_ranks():
    def of_rank(rank):
        comm.create_local_process_group(2)
        losses = validation_losses(Fake(), batches(2, 2) if rank == 0 else batches(1))
        # (1 + 2 + 3 + 4 + 1) / 5; loss_b is of four of the five images, none of them rank 1's
        assert losses == pytest.approx({"loss_a": 2.2, "loss_b": 0.8, "total_loss": 3.0})

    assert run_ranks(2, of_rank) == [0, 0]


@pytest.mark.parametrize("variant", ["vild_text", "vild_image", "vild", "vild_ensemble"])
def test_a_detector_is_left_as_it_was_and_gives_the_same_losses_again(variant):
    torch.manual_seed(0)
    model = build_model(tiny_config(variant, norm="BN"))
    model.set_vocabulary(tiny_vocabulary())
    model.train()
    before = copy.deepcopy(model.state_dict())
    images = [[tiny_input(cached=None, seed=k)] for k in range(3)]
    first = validation_losses(model, images)
    assert {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls"} < first.keys()
    assert "loss_distillation" not in first
    torch.rand(5)  # another state of the generators
    assert validation_losses(model, images) == first
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    total = sum(value for name, value in first.items() if name != "total_loss")
    assert first["total_loss"] == pytest.approx(total)


def config(**options):
    cfg = tiny_config()
    cfg.DATASETS.TEST = ("my_val",)
    cfg.TEST.EVAL_PERIOD = 10
    for key, value in options.items():
        (cfg.TEST if key == "EVAL_PERIOD" else cfg.TEST.OVD)[key] = value
    return cfg


WRONG = {
    "no period": (
        {"EVAL_PERIOD": 0, "BEST_CHECKPOINT": "bbox/AP"},
        "TEST.OVD.BEST_CHECKPOINT 'bbox/AP' needs evaluations during training, but "
        "TEST.EVAL_PERIOD is 0: set it",
    ),
    "no period for losses": (
        {"EVAL_PERIOD": 0, "VALIDATION_LOSS": True},
        "TEST.OVD.VALIDATION_LOSS True needs evaluations",
    ),
    "no task": ({"BEST_CHECKPOINT": "AP50_base"}, "'AP50_base' is no metric of these evaluations"),
    "other task": ({"BEST_CHECKPOINT": "box/AP50_base"}, "expected one as bbox/AP50_base"),
    "other number": ({"BEST_CHECKPOINT": "segm/AP_bases"}, "expected one as segm/AP_base,"),
    "no losses": (
        {"BEST_CHECKPOINT": "val_loss/total_loss"},
        "is only there with TEST.OVD.VALIDATION_LOSS True",
    ),
}


@pytest.mark.parametrize(("options", "expected"), WRONG.values(), ids=WRONG.keys())
def test_a_selection_that_cannot_be_meant(options, expected):
    (problem,) = selection_problems(selection_of(config(**options)))
    assert expected in problem


def test_selections_that_can_be_meant():
    for metric in ("", "bbox/AP", "segm/AP50_base", "bbox/APr"):
        assert list(selection_problems(selection_of(config(BEST_CHECKPOINT=metric)))) == []
    losses = {"VALIDATION_LOSS": True, "BEST_CHECKPOINT": "val_loss/loss_cls"}
    assert list(selection_problems(selection_of(config(**losses)))) == []
    assert list(selection_problems(selection_of(config(EVAL_PERIOD=0)))) == []


def test_selecting_by_novel_categories_is_noted():
    for metric in ("bbox/AP50_novel", "segm/APr"):
        (notice,) = selection_notices(selection_of(config(BEST_CHECKPOINT=metric)))
        assert f"'{metric}' selects by boxes of novel categories" in notice
    for metric in ("", "bbox/AP50_base", "val_loss/total_loss"):
        assert selection_notices(selection_of(config(BEST_CHECKPOINT=metric))) == []


def test_selections_of_several_test_sets_and_of_none():
    cfg = config(BEST_CHECKPOINT="bbox/AP")
    cfg.DATASETS.TEST = ("one", "two")
    (problem,) = selection_problems(selection_of(cfg))
    assert "expected one as" in problem and "one/bbox/AP" in problem
    cfg.TEST.OVD.BEST_CHECKPOINT = "two/bbox/AP"
    assert list(selection_problems(selection_of(cfg))) == []
    cfg.MODEL.MASK_ON, cfg.TEST.OVD.BEST_CHECKPOINT = False, "two/segm/AP"
    assert len(list(selection_problems(selection_of(cfg)))) == 1
    cfg.DATASETS.TEST = ()
    (problem,) = selection_problems(selection_of(cfg))
    assert "DATASETS.TEST is empty" in problem


class Training:
    """Ten iterations with an evaluation after every second."""

    max_iter = 10

    def __init__(self, folder, metric, start=0):
        self.start_iter, self.model = start, nn.Linear(1, 1)
        self.hook = BestCheckpoint(metric, period=2, folder=folder, model=lambda: self.model)
        self.hook.trainer = self
        self.path = folder / "model_best.pth"

    def run(self, values, metric="bbox/AP"):
        """`values` of the evaluations; None: it gave none. Returns what is kept after each."""
        kept = []
        last = [False] * (len(values) - 1) + [True]
        with EventStorage(self.start_iter) as self.storage:
            self.hook.before_train()
            for k, (value, is_last) in enumerate(zip(values, last, strict=True)):
                self.iter = self.max_iter if is_last else self.start_iter + 2 * k + 1
                self.storage.iter = self.iter
                self.model.weight.data.fill_(self.iter)
                if value is not None:
                    self.storage.put_scalar(metric, value)
                (self.hook.after_train if is_last else self.hook.after_step)()
                kept.append(self._kept())
        return kept

    def _kept(self):
        if not self.path.is_file():
            return None
        stored = torch.load(self.path, weights_only=True)
        iteration = stored["iteration"]
        assert stored["model"]["weight"].item() == (10 if iteration == 9 else iteration)
        return iteration


def test_the_highest_number_is_kept(tmp_path):
    assert Training(tmp_path, "bbox/AP").run([1.0, 3.0, 3.0, 2.0, 4.0]) == [1, 3, 3, 3, 9]
    assert not (tmp_path / "last_checkpoint").exists()


def test_the_lowest_loss_is_kept(tmp_path):
    name = "my_val/val_loss/total_loss"
    assert Training(tmp_path, name).run([2.0, 3.0, 1.0, 1.5, 1.2], name) == [1, 1, 5, 5, 5]


def test_an_evaluation_without_the_number_changes_nothing(tmp_path, caplog):
    assert Training(tmp_path, "bbox/APr").run([1.0] * 5) == [None] * 5
    assert caplog.text.count("gave no bbox/APr") == 5
    # That of an earlier evaluation is not taken for this one's.
    assert Training(tmp_path, "bbox/AP").run([None, 1.0, None, None, 0.5]) == [None, 3, 3, 3, 3]


def test_a_resumed_training_knows_the_best_and_a_new_one_does_not(tmp_path):
    Training(tmp_path, "bbox/AP").run([1.0, 3.0, 0.0, 0.0, 0.0])
    assert Training(tmp_path, "bbox/AP", start=6).run([2.0, 2.5]) == [3, 3]
    assert Training(tmp_path, "bbox/AP", start=6).run([2.0, 3.5]) == [3, 9]
    assert Training(tmp_path, "segm/AP", start=6).run([1.0, 0.5], "segm/AP") == [7, 7]
    assert Training(tmp_path, "segm/AP").run([0.1, 0.0, 0.0, 0.0, 0.0], "segm/AP") == [1] * 5


def test_a_damaged_best_is_looked_for_anew(tmp_path, caplog):
    training = Training(tmp_path, "bbox/AP")
    training.run([1.0, 3.0, 0.0, 0.0, 0.0])
    training.path.write_bytes(training.path.read_bytes()[:-20])
    assert Training(tmp_path, "bbox/AP", start=8).run([2.0]) == [9]
    assert "The best is looked for anew" in caplog.text


def test_nothing_resumes_from_weights_alone(tmp_path):
    for name in ("model_best.pth", "model_ema.pth"):
        save_weights(nn.Linear(1, 1), tmp_path / name, iteration=99)
    write_checkpoint(tmp_path / "model_0000003.pth", {"model": {}, "trainer": {"iteration": 3}})
    (tmp_path / "last_checkpoint").write_text("gone.pth")
    assert find_last_good(tmp_path).name == "model_0000003.pth"
    (tmp_path / "model_0000003.pth").unlink()
    with pytest.raises(SetupError, match="no checkpoint in"):
        find_last_good(tmp_path)
