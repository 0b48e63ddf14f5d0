"""CLIPSelf's model: loss by hand, what trains, average and export, for both families of ViTs."""

import numpy as np
import pytest
import torch
from detectron2.engine.defaults import create_ddp_model
from detectron2.utils import comm
from torch import nn
from torch.nn import functional as F

from ovd_d2.clip.dense import roi_features
from ovd_d2.clip.loading import load_teacher
from ovd_d2.data.mapper import no_objects
from ovd_d2.errors import SetupError
from ovd_d2.modeling.averaging import average_weights
from ovd_d2.projects.clipself.export import ExportRefined, export_refined
from ovd_d2.projects.clipself.losses import distillation_distances, joint_mean
from ovd_d2.projects.clipself.model import CLIPSelf
from ovd_d2.projects.clipself.passengers import Regions, attach_regions
from tests.processes import run_ranks
from tests.tiny_vits import DEPTH, DIM, EVA, FAMILIES, NATIVE, SIDE, folder_of_architecture
from tests.tiny_vits import tiny_teacher as teacher_of

SIZE = 64
COUNTS = (5, 2)  # regions of the two images


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def build(family, **options):
    options = {"teacher": teacher_of(family), "image_size": SIZE, "alpha": 0.7, **options}
    return CLIPSelf(**options).train()


@pytest.fixture
def model(family):
    return build(family)


def record(seed, count):
    """A training input with random pixels and regions."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (3, 48, SIZE), dtype=np.uint8)
    corners = generator.uniform(0, 0.4, (count, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(0.1, 0.6, (count, 2))], axis=1)
    crops = generator.integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)
    instances = no_objects((48, SIZE), None)
    regions = Regions(torch.from_numpy(boxes).float(), torch.from_numpy(crops))
    attach_regions(instances, regions)
    return {"image": torch.from_numpy(pixels), "instances": instances}


def batch():
    return [record(k, count) for k, count in enumerate(COUNTS)]


def train_a_little(model, steps=2):
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch())["loss_clipself"].backward()
        optimizer.step()


def gradients(model):
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def test_distances_by_hand():
    student = torch.tensor([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])
    teacher = torch.tensor([[1.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    assert distillation_distances(student, teacher).tolist() == pytest.approx([0.4, 0.0, 1.0])
    assert joint_mean(torch.tensor([1.0, 2.0, 6.0])) == 3.0


def test_the_loss_by_hand(model):
    inputs = batch()
    found = model(inputs)
    total = 0.0
    for one in inputs:
        image = torch.zeros(1, 3, SIZE, SIZE)
        image[0, :, :48] = one["image"] / 255
        mean, std = (
            torch.tensor(x).view(1, 3, 1, 1) for x in (model.teacher.mean, model.teacher.std)
        )
        dense = model.student((image - mean) / std)
        regions = one["instances"].get("regions_to_distil").value
        pooled = roi_features(dense, [regions.boxes * SIZE], [(SIZE, SIZE)])
        target = model.teacher.encode_images((regions.crops / 255 - mean) / std)
        total += (1 - F.cosine_similarity(pooled, target)).sum()
    assert list(found) == ["loss_clipself"]
    torch.testing.assert_close(found["loss_clipself"], total / sum(COUNTS))


def test_only_blocks_have_gradients_and_the_teacher_has_none(family, model):
    before = {name: one.clone() for name, one in model.teacher.state_dict().items()}
    train_a_little(model)
    blocks = {NATIVE: "student.visual.transformer.resblocks.", EVA: "student.visual.trunk.blocks."}
    names = set(gradients(model))
    assert names == {name for name, one in model.named_parameters() if one.requires_grad}
    assert names and all(name.startswith(blocks[family]) for name in names)
    assert {name.split(".")[4] for name in names} == {str(k) for k in range(DEPTH)}
    if family == EVA:
        last = f"{blocks[EVA]}{DEPTH - 1}.attn."
        assert not names & {f"{last}{one}.weight" for one in ("q_proj", "k_proj")}
    for name, one in model.teacher.state_dict().items():
        assert torch.equal(one, before[name]), name
    frozen = [n for n, p in model.named_parameters() if not p.requires_grad]
    teacher = model.teacher.visual.state_dict()
    for name in frozen:
        value = model.get_parameter(name)
        assert torch.equal(value, teacher[name.removeprefix("student.visual.")]), name


def test_the_state_dict_is_the_students_alone(model):
    visual = {f"student.visual.{key}" for key in model.teacher.visual.state_dict()}
    assert set(model.state_dict()) == visual


def test_training_makes_it_smaller(model):
    first = model(batch())["loss_clipself"].item()
    train_a_little(model, steps=6)
    assert model(batch())["loss_clipself"].item() < first - 0.01


def test_gradient_checkpointing_changes_no_gradient(family):
    expected, saved = build(family), build(family, gradient_checkpointing=True)
    for one in (expected, saved):
        one(batch())["loss_clipself"].backward()
    assert saved.student.tower.checkpoints_gradients
    for name, gradient in gradients(expected).items():
        torch.testing.assert_close(gradients(saved)[name], gradient, msg=name)


def test_windows_are_the_students(family):
    plain, windowed = build(family), build(family, window=2, global_blocks=[1])
    assert (windowed.student.window, windowed.refined().window) == (2, 2)
    assert windowed.student.global_blocks == windowed.refined().global_blocks == {1}
    difference = plain(batch())["loss_clipself"] - windowed(batch())["loss_clipself"]
    assert difference.abs() > 1e-4


def test_averages_by_hand():
    student = {"a": torch.tensor([2.0, 1.0]), "n": torch.tensor([7])}
    teacher = {"a": torch.tensor([1.0, 1.0]), "n": torch.tensor([3])}
    found = average_weights(student, teacher, 0.7)
    assert found["a"].tolist() == pytest.approx([1.7, 1.0]) and found["n"].tolist() == [7]
    random = torch.randn(1000)
    assert torch.equal(average_weights({"a": random}, {"a": random.clone()}, 0.3)["a"], random)
    student, teacher = {"a": torch.randn(9)}, {"a": torch.randn(9)}
    for alpha, expected in ((0.0, teacher), (1.0, student)):
        torch.testing.assert_close(average_weights(student, teacher, alpha), expected)


def test_evaluation_has_the_averaged_weights_and_training_goes_on_without(model):
    train_a_little(model)
    student = {key: value.clone() for key, value in model.state_dict().items()}
    teacher = model.teacher.visual.state_dict()
    refined = model.eval().refined()
    for key, value in refined.visual.state_dict().items():
        expected = 0.7 * student[f"student.visual.{key}"] + 0.3 * teacher[key]
        torch.testing.assert_close(value, expected, msg=key)
    images = model.preprocess(batch())
    found = model(batch())
    assert [one["padded_size"] for one in found] == [(SIZE, SIZE)] * 2
    for k, one in enumerate(found):
        assert one["dense_features"].shape == (DIM, SIZE // 8, SIZE // 8)
        assert not one["dense_features"].requires_grad
        torch.testing.assert_close(one["dense_features"], refined(images)[k])
        assert (one["dense_features"] - model.student(images)[k]).abs().max() > 1e-4
    for key, value in model.state_dict().items():
        assert torch.equal(value, student[key]), key


def test_the_average_follows_the_weights(family, model):
    images = torch.randn(1, 3, SIZE, SIZE)
    model.eval()
    before = model.averaged_dense_features(images)
    assert model.refined() is model.refined()
    torch.testing.assert_close(before, model.student(images))  # the teacher still
    other = build(family)
    train_a_little(other)
    model.load_state_dict(other.state_dict())  # while in evaluation mode
    after = model.averaged_dense_features(images)
    assert (after - before).abs().max() > 1e-4
    torch.testing.assert_close(after, other.eval().averaged_dense_features(images))


def test_images_of_an_evaluation_may_have_any_size(model):
    model.eval()
    small = {"image": torch.zeros(3, 20, 30, dtype=torch.uint8)}
    large = {"image": torch.zeros(3, 100, 50, dtype=torch.uint8)}
    assert model([small])[0]["padded_size"] == (32, 32)
    assert model([small, large])[1]["dense_features"].shape == (DIM, 13, 13)
    with pytest.raises(ValueError, match="100 pixels a side, but MODEL.CLIPSELF.IMAGE_SIZE is 64"):
        model.train()([large])


def test_inputs_without_regions(model):
    one = {"image": torch.zeros(3, 20, 30).byte(), "instances": no_objects((20, 30), None)}
    with pytest.raises(ValueError, match="no regions to distil"):
        model([one])


def test_the_export_is_a_teacher(family, model, tmp_path):
    folder_of_architecture(tmp_path, family)
    train_a_little(model)
    path = tmp_path / "clipself.safetensors"
    export_refined(model, path)
    loaded = load_teacher(family, str(path))
    original, refined = model.teacher.state_dict(), model.refined().visual.state_dict()
    assert loaded.state_dict().keys() == original.keys()
    changed = 0
    for key, value in loaded.state_dict().items():
        if key.startswith("visual."):
            assert torch.equal(value, refined[key.removeprefix("visual.")]), key
            changed += not torch.equal(value, original[key])
        else:
            assert torch.equal(value, original[key]), key
    assert changed > 10
    assert loaded.fingerprint != model.teacher.fingerprint


def test_a_checkpoint_of_another_teacher(family, model, tmp_path):
    hook = ExportRefined(model, folder=tmp_path, period=1)
    hook.before_train()
    train_a_little(model)
    hook.before_train()  # blocks alone have changed
    model.load_state_dict(
        CLIPSelf(teacher=teacher_of(family, 1), image_size=1, alpha=1).state_dict()
    )
    with pytest.raises(SetupError, match="is not the teacher's"):
        hook.before_train()


def reference(family):
    model = build(family)
    model(batch())["loss_clipself"].backward()
    return model


@pytest.mark.skipif(torch.cuda.is_available(), reason="Detectron2 takes NCCL where there is a GPU")
def test_two_processes_are_one_with_the_joint_batch(family, tmp_path):
    """Five regions in one process, two in the other."""

    def of_rank(rank):
        comm.create_local_process_group(2)
        wrapped = create_ddp_model(build(family), device_ids=None, broadcast_buffers=False)
        loss = wrapped([batch()[rank]])["loss_clipself"]
        loss.backward()
        found = {"gradients": gradients(wrapped.module), "loss": loss.detach()}
        torch.save(found, tmp_path / f"{rank}.pt")

    assert run_ranks(2, of_rank) == [0, 0]
    joint = reference(family)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    expected = gradients(joint)
    for one in found:
        assert one["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(one["gradients"][name], gradient, atol=1e-6, rtol=1e-4)
    losses = [one["loss"].item() for one in found]
    assert losses[0] != losses[1]
    assert sum(losses) / 2 == pytest.approx(joint(batch())["loss_clipself"].item(), rel=1e-5)


def test_compiled_towers_keep_their_names(family):
    compiled = build(family, compile_towers=True)
    assert compiled.state_dict().keys() == build(family).state_dict().keys()
    assert compiled.student._compiled_call_impl is not None
    assert compiled.refined()._compiled_call_impl is None
    assert isinstance(compiled.refined(), nn.Module)
