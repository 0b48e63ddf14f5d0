"""What is loaded is the model's, whole, with its vocabulary; and what is not is refused."""

import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from ovd_d2.engine import build
from ovd_d2.engine.checkpoint import FIRST_STAGE, WHOLE_MODEL, SafeCheckpointer
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Vocabulary
from tests.tiny import DIM, random_units, tiny_config, tiny_vocabulary

FIVE = ["dog", "cow", "bell", "rat", "hen"]


def five_names():
    return Vocabulary(
        FIVE,
        random_units(5, seed=3),
        torch.tensor([True, False, False, False, True]),
        teacher="T",
        prompts="single",
        background=random_units(1, seed=4)[0],
    )


def model_of(variant="vild_text", num_classes=4, vocabulary=None, **changes):
    cfg = tiny_config(variant)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    model = build_model(cfg)
    if vocabulary is not None:
        model.set_vocabulary(vocabulary)
    return model


@pytest.fixture
def five(tmp_path):
    """A checkpoint of a model with five names."""
    SafeCheckpointer(model_of(vocabulary=five_names()), str(tmp_path)).save("five")
    return str(tmp_path / "five.pth")


def classifier_of(model):
    return model.roi_heads.classifier


def same_vocabulary(found, expected):
    assert found.names == expected.names
    assert torch.equal(found.embeddings, expected.embeddings)
    assert torch.equal(found.novel, expected.novel)
    assert torch.equal(found.background, expected.background)
    assert (found.teacher, found.prompts) == (expected.teacher, expected.prompts)


CHECKPOINTERS = [DetectionCheckpointer, SafeCheckpointer]


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
def test_the_vocabulary_travels_whole_whatever_its_length(five, checkpointer):
    model = model_of(num_classes=80)
    checkpointer(model).load(five)
    same_vocabulary(classifier_of(model).vocabulary, five_names())
    assert torch.equal(classifier_of(model).text_embeddings, five_names().embeddings)
    assert classifier_of(model).novel.tolist() == [True, False, False, False, True]
    assert model.roi_heads.num_classes == model.roi_heads.box_predictor.num_classes == 5
    assert classifier_of(model)(random_units(2)).shape == (2, 6)  # it detects


@pytest.mark.parametrize("checkpointer", CHECKPOINTERS)
@pytest.mark.parametrize("count", [4, 5])
def test_a_vocabulary_that_was_given_stays(five, checkpointer, count):
    own = tiny_vocabulary([f"name {k}" for k in range(count)])
    model = model_of(vocabulary=own)
    checkpointer(model).load(five)
    assert classifier_of(model).vocabulary.names == own.names
    assert torch.equal(classifier_of(model).text_embeddings, own.embeddings)


def test_the_vocabulary_of_the_last_checkpoint_counts(five, tmp_path):
    SafeCheckpointer(model_of(vocabulary=tiny_vocabulary()), str(tmp_path)).save("four")
    model = model_of()
    for name, count in (("four", 4), ("five", 5)):
        SafeCheckpointer(model, required=WHOLE_MODEL).load(str(tmp_path / f"{name}.pth"))
        assert len(classifier_of(model).vocabulary) == model.roi_heads.num_classes == count


def test_every_stage_of_a_cascade_gets_it(tmp_path):
    cascade = {
        "MODEL.ROI_HEADS.NAME": "ViLDCascadeROIHeads",
        "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": ((10.0,) * 4, (20.0,) * 4, (30.0,) * 4),
    }
    trained = model_of(vocabulary=five_names(), **cascade)
    SafeCheckpointer(trained, str(tmp_path)).save("five")
    model = model_of(**cascade)
    SafeCheckpointer(model, required=WHOLE_MODEL).load(str(tmp_path / "five.pth"))
    for predictor in model.roi_heads.predictors:
        same_vocabulary(predictor.classifier.vocabulary, five_names())
        assert predictor.num_classes == 5


@pytest.fixture
def damaged(five, tmp_path):
    """A checkpoint whose vocabulary is cut short."""
    content = torch.load(five, weights_only=True)
    (key,) = [name for name in content["model"] if name.endswith("classifier.vocabulary")]
    content["model"][key] = content["model"][key][:100]
    torch.save(content, tmp_path / "damaged.pth")
    return tmp_path / "damaged.pth"


@pytest.mark.parametrize("required", [None, FIRST_STAGE, WHOLE_MODEL])
def test_a_damaged_vocabulary_is_refused(damaged, required):
    message = refusal(model_of(), damaged, required)
    assert f"MODEL.WEIGHTS: {damaged}: its vocabulary (" in message
    assert "classifier.vocabulary) cannot be read" in message and "MODEL.OVD.VOCABULARY" in message
    with pytest.raises(ValueError, match="classifier.vocabulary.* cannot be read"):
        DetectionCheckpointer(model_of()).load(str(damaged))


def test_a_damaged_vocabulary_does_not_matter_beside_one_that_was_given(damaged):
    model = model_of(vocabulary=five_names())
    SafeCheckpointer(model, required=WHOLE_MODEL).load(str(damaged))
    same_vocabulary(classifier_of(model).vocabulary, five_names())


def test_a_vocabulary_of_another_width_is_left_out(five, tmp_path, caplog):
    content = torch.load(five, weights_only=True)
    (key,) = [name for name in content["model"] if name.endswith("classifier.vocabulary")]
    wide = Vocabulary(["a"], torch.eye(1, DIM + 1)).to_bytes()
    content["model"][key] = torch.frombuffer(bytearray(wide), dtype=torch.uint8)
    torch.save(content, tmp_path / "wide.pth")
    model = model_of()
    SafeCheckpointer(model, required=FIRST_STAGE).load(str(tmp_path / "wide.pth"))
    assert classifier_of(model).vocabulary is None
    assert "The vocabulary of the checkpoint is left out" in caplog.text


def refusal(model, path, required=WHOLE_MODEL):
    with pytest.raises(SetupError) as caught:
        SafeCheckpointer(model, required=required).load(str(path))
    (problem,) = caught.value.problems
    return problem


def test_a_checkpoint_of_another_variant_is_refused(five):
    problem = refusal(model_of("vild_ensemble"), five)
    absent = len(model_of("vild_ensemble").roi_heads.image_head.state_dict())
    assert problem.startswith(f"{absent} of ")
    assert f"parameters are not in MODEL.WEIGHTS {five} (first: roi_heads.image_head." in problem
    assert problem.endswith("it is another model's")


def test_a_checkpoint_of_another_width_is_refused(five):
    cfg = tiny_config()
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 48
    problem = refusal(build_model(cfg), five)
    assert "have another shape there (first: roi_heads.box_head.fc1.weight, (32, " in problem
    assert "the model's is (48, " in problem


@pytest.mark.parametrize("required", [WHOLE_MODEL, FIRST_STAGE, None])
def test_weights_of_something_else_are_refused_in_training_too(tmp_path, required):
    torch.save({"fc.weight": torch.ones(3, 3), "fc.bias": torch.ones(3)}, tmp_path / "r18.pth")
    problem = refusal(model_of(), tmp_path / "r18.pth", required)
    count, total = map(int, problem.split(" parameters")[0].split(" of "))
    assert count == total > 10
    assert ("matching_heuristics=True" in problem) is (required is None)


def test_no_weights_at_all_are_refused_but_in_training():
    with pytest.raises(SetupError, match=r"train\.init_checkpoint is empty"):
        SafeCheckpointer(model_of(), required=WHOLE_MODEL, key="train.init_checkpoint").load("")
    assert SafeCheckpointer(model_of()).load("") == {}


def test_training_starts_from_a_backbone(tmp_path):
    model = model_of()
    backbone = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    path = tmp_path / "backbone.pkl"
    arrays = {name: value.numpy() for name, value in backbone.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}))
    fresh = model_of()
    SafeCheckpointer(fresh).load(str(path))
    for name, value in backbone.items():
        assert torch.equal(fresh.state_dict()[name], value)


def test_the_first_stage_of_any_variant_serves(five):
    model = model_of("vild_ensemble")
    SafeCheckpointer(model, required=FIRST_STAGE).load(five)
    cfg = tiny_config("vild_ensemble")
    cfg.MODEL.WEIGHTS = five
    with pytest.raises(SetupError, match="parameters are not in"):
        build.build_open_vocabulary_model(cfg)
    build.build_open_vocabulary_model(cfg, required=FIRST_STAGE)


def test_statistics_of_batch_norms_are_needed_their_counts_are_not(tmp_path):
    model = model_of()
    weights = model.state_dict()
    counts = [name for name in weights if name.endswith("num_batches_tracked")]
    variances = [name for name in weights if name.endswith("running_var")]
    assert counts and variances
    without = {k: v for k, v in weights.items() if k not in counts}
    torch.save({"model": without}, tmp_path / "counts.pth")
    SafeCheckpointer(model_of(), required=WHOLE_MODEL).load(str(tmp_path / "counts.pth"))
    del without[variances[0]]
    torch.save({"model": without}, tmp_path / "variance.pth")
    assert f"1 of {len(without) + 1} " in refusal(model_of(), tmp_path / "variance.pth")
    assert variances[0] in refusal(model_of(), tmp_path / "variance.pth")


def test_more_than_the_model_has_is_a_warning(tmp_path, caplog):
    weights = {**model_of("vild_ensemble").state_dict()}
    torch.save({"state_dict": weights, "meta": {}}, tmp_path / "more.pth")
    SafeCheckpointer(model_of(), required=WHOLE_MODEL).load(str(tmp_path / "more.pth"))
    assert "not used by the model" in caplog.text


def test_a_wrong_file_is_refused_before_it_is_read(tmp_path):
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    problem = refusal(model_of(), tmp_path / "page.pth")
    assert "begins with '<!DOCTYPE html>': a web page?" in problem
    checkpointer = SafeCheckpointer(model_of(), required=WHOLE_MODEL)
    for _ in range(2):  # Detectron2's asserts that the first load ended well
        with pytest.raises(SetupError, match="a web page"):
            checkpointer.load(str(tmp_path / "page.pth"))


class Counter:
    value = 0

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def test_resuming_brings_all_states_and_loading_the_weights_alone(tmp_path, caplog):
    model, counter = model_of(vocabulary=five_names()), Counter()
    checkpointer = SafeCheckpointer(model, str(tmp_path), counter=counter)
    assert not checkpointer.has_checkpoint()
    assert checkpointer.resume_or_load("", resume=True) == {}
    assert checkpointer.resumed_from is None
    counter.value = 7
    checkpointer.save("model_0000004", iteration=4)
    counter.value = 0
    checkpointer.resume_or_load(str(tmp_path / "model_0000004.pth"), resume=False)
    assert counter.value == 0 and checkpointer.resumed_from is None
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 4}
    assert counter.value == 7
    assert checkpointer.resumed_from == tmp_path / "model_0000004.pth"
    assert checkpointer.get_all_checkpoint_files() == [str(tmp_path / "model_0000004.pth")]
    later = SafeCheckpointer(model, str(tmp_path), counter=counter, loader=Counter())
    later.resume_or_load("")
    assert "holds no state of: loader" in caplog.text


def test_a_damaged_last_checkpoint_gives_way_to_the_one_before(tmp_path, caplog):
    model, counter = model_of(), Counter()
    checkpointer = SafeCheckpointer(model, str(tmp_path), trainer=counter)
    for iteration in (4, 9):
        counter.state_dict = lambda iteration=iteration: {"value": 1, "iteration": iteration}
        checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
    (tmp_path / "model_0000009.pth").write_bytes(b"PK\x03\x04")
    assert checkpointer.resume_or_load("", resume=True) == {"iteration": 4}
    assert "model_0000009.pth is cut short" in caplog.text
    assert "model_0000004.pth, the last good one" in caplog.text
