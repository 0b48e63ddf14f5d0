import math

import pytest
import torch

from ovd_d2.losses import distillation_l1, level_huber_loss, suppress_novel_logits


def test_distillation_is_the_mean_over_rows_of_summed_differences():
    student = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    teacher = torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # Row 0: |1 - 0| + |0 - 1| = 2; row 1: 0; mean 1; times 0.5.
    assert distillation_l1(student, teacher, 0.5).item() == pytest.approx(0.5)


def test_distillation_normalises_both_sides():
    student = torch.tensor([[3.0, 4.0]])
    teacher = torch.tensor([[0.0, 7.0]])
    # (0.6, 0.8) against (0, 1): 0.6 + 0.2.
    assert distillation_l1(student, teacher, 2.0).item() == pytest.approx(1.6)
    assert distillation_l1(10 * student, 0.1 * teacher, 2.0).item() == pytest.approx(1.6)


def test_distillation_equals_the_official_form():
    # The official code: w * 512 * mean over all elements.
    generator = torch.Generator().manual_seed(0)
    student = torch.nn.functional.normalize(torch.randn(7, 512, generator=generator), dim=1)
    teacher = torch.nn.functional.normalize(torch.randn(7, 512, generator=generator), dim=1)
    official = 0.5 * 512 * (student - teacher).abs().mean()
    torch.testing.assert_close(distillation_l1(student, teacher, 0.5), official)


def test_distillation_takes_int8_rows_without_their_scale():
    student = torch.tensor([[3.0, 4.0]])
    teacher = torch.tensor([[127, 0]], dtype=torch.int8)  # (1, 0) in a cache of int8
    loss = distillation_l1(student, teacher, weight=1.0)
    torch.testing.assert_close(loss, torch.tensor(0.4 + 0.8))


def test_distillation_gradient_reaches_the_student_alone():
    student = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    teacher = torch.ones(3, 4, requires_grad=True)
    distillation_l1(student, teacher, 1.0).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_distillation_without_rows_is_zero_with_a_live_graph():
    weight = torch.ones(4, 4, requires_grad=True)
    loss = distillation_l1(torch.zeros(0, 4) @ weight, torch.zeros(0, 4), 0.5)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(weight.grad, torch.zeros(4, 4))


def test_distillation_in_half_precision_is_computed_in_float32():
    student = torch.tensor([[3.0, 4.0]], dtype=torch.bfloat16)
    loss = distillation_l1(student, torch.tensor([[0.0, 1.0]]), 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.8, abs=1e-6)


def test_distillation_refuses_other_widths():
    with pytest.raises(ValueError, match=r"\(2, 4\) and \(2, 8\)"):
        distillation_l1(torch.zeros(2, 4), torch.zeros(2, 8), 1.0)


@pytest.mark.parametrize(("mode", "value"), [("zero", 0.0), ("exclude", -math.inf)])
def test_novel_logits_are_suppressed_and_background_is_not(mode, value):
    logits = torch.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    result = suppress_novel_logits(logits, torch.tensor([False, True]), mode)
    assert result.tolist() == [[1.0, value, 3.0]]
    torch.nn.functional.cross_entropy(result, torch.tensor([0])).backward()
    assert logits.grad[0, 1] == 0
    assert torch.isfinite(logits.grad).all()


def test_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="'minus'"):
        suppress_novel_logits(torch.zeros(1, 2), torch.tensor([False]), "minus")


def test_box_loss_of_levels_is_the_sum_of_their_means():
    predicted = [torch.tensor([[0.1, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]), torch.ones(1, 4)]
    targets = [torch.zeros(2, 4), torch.tensor([[0.0, 1.0, 1.0, 1.0]])]
    delta = 0.5
    small, large = 0.5 * 0.1**2, delta * (1.0 - delta / 2)  # below and above delta
    expected = (small + large) / 8 + large / 4
    assert level_huber_loss(predicted, targets, delta).item() == pytest.approx(expected)


def test_box_loss_of_levels_in_half_precision_is_computed_in_float32():
    predicted = torch.full((2, 4), 0.3).bfloat16()
    loss = level_huber_loss([predicted], [torch.zeros(2, 4)], 1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(0.5 * predicted[0, 0].item() ** 2, rel=1e-6)


def test_a_level_without_positive_anchors_adds_nothing_with_a_live_graph():
    whole = torch.ones(3, 4, requires_grad=True)
    loss = level_huber_loss([whole[:0], whole[:0]], [torch.zeros(0, 4)] * 2, 1 / 9)
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(whole.grad, torch.zeros(3, 4))
