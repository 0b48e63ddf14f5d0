"""The benchmarks of CLIPSelf's step and of F-ViT, tiny: their rows by hand, and their page."""

import pytest
from benchmarks import dense, distillation, fvit
from benchmarks.distillation import Distillation
from benchmarks.fvit import Detector

from tests.tiny_vits import DIM, EVA, folder_of_architecture

OPTIONS = (
    *("MODEL.FVIT.TAPS", "(0, 1, 1, 2)", "MODEL.OVD.EMBEDDING_DIM", str(DIM)),
    *("MODEL.FPN.OUT_CHANNELS", "16", "MODEL.ROI_HEADS.NUM_CLASSES", "4"),
    *("MODEL.ROI_BOX_HEAD.CONV_DIM", "16", "MODEL.ROI_MASK_HEAD.CONV_DIM", "16"),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "16", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", "8"),
    *("MODEL.RPN.POST_NMS_TOPK_TEST", "10", "TEST.DETECTIONS_PER_IMAGE", "5"),
)


@pytest.fixture(autouse=True)
def architecture(tmp_path):
    folder_of_architecture(tmp_path, EVA)


def test_the_step_does_what_student_and_teacher_do_and_no_more():
    things = distillation._things(Distillation(EVA, 64, crops=3, rounds=1))
    student, teacher, step = (
        distillation.operations_of(lambda name=name: things[name](0))
        for name in ("student", "teacher", "step")
    )
    assert 0 < teacher < step == student + teacher


def test_the_parts_of_inference_make_up_all_of_it():
    rows = fvit.measure(Detector(EVA, 64, OPTIONS, rounds=(1, 1)))
    shares = {row["name"]: row["share_of_operations"] for row in rows[:-1]}
    masks = shares.pop(fvit.MASKS)
    assert list(shares) == ["tower", "pyramid", "RPN", "heads"]
    assert sum(shares.values()) == pytest.approx(1, abs=0.003)
    assert 0 < masks < shares["heads"]
    # the same forward pass, and a backward pass through a tower that has none otherwise
    assert rows[-1]["naive_operations"] > 1
    assert rows[-1]["naive_memory"] > 1


def test_the_page_has_all_rows():
    rows = [
        {"name": "a", "step_over": 1.2, "step_operations": 1.25, "step_over_sum": 0.96},
        {"name": "tower", "share_of_time": 0.625, "share_of_operations": 0.5},
        {"name": "b", "naive_over": 1.5, "naive_operations": 1.75, "naive_memory": 2.5}
        | {"naive_megabytes": 2500, "frozen_megabytes": 1000},
    ]
    text = dense.page(
        {"command": "python x", "date": "2026-01-04", "commit": "c0ffee1", "rows": rows}
    )
    assert "| a " in text and "| 96 % " in text.replace("  ", " ")
    assert "0.625" in text and "2,500" in text
