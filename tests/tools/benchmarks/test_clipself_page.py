import argparse
import json
import shutil
from pathlib import Path

import benchmark
import pytest
from benchmarks import dense_teacher, regions

from ovd_d2.pictograms.steps import Run
from ovd_d2.pipeline.pipeline import Pipeline

DOCS = Path(__file__).parents[3] / "docs"
ORIGIN = {"command": "python x", "date": "2026-01-02", "commit": "c0ffee1", "pictograms": 3}


def write(path, content):
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(content))


def region_rows(folder):
    """Original: 10 everywhere; refined: 60, and 2 more with the second seed."""
    for run, student in regions._runs(folder, [0, 1], regions.STUDENTS):
        value = 60.0 + 2 * run.seed if student.is_refined else 10.0
        found = {f"{kind}-things-top1": value for kind in regions.KINDS}
        if student.name == "original":
            found["crops-things-top1"] = 90.0
        output = run.output(f"regions_{student.name}")
        write(output / "results.json", {str(size): found for size in regions.SIZES})
        pixels = run.output(f"segmentation_{student.name}") / "inference" / "results.json"
        write(pixels, {"sem_seg": {"mIoU": 30.0}})
    return regions.collect_rows(folder, [0, 1])


def test_every_refined_clip_is_looked_at_after_its_training(tmp_path):
    found = regions.steps(tmp_path, [0, 1])
    names = [step.name for step in found]
    assert names.count("regions_original_seed0") == 1 and "regions_original_seed1" not in names
    for seed in (0, 1):
        trained = f"clipself_proposals_seed{seed}"
        assert names.index(f"proposals_seed{seed}") < names.index(trained)
        assert names.index(trained) < names.index(f"regions_{trained}")
    steps = {step.name: step for step in found}
    evaluated = steps["regions_clipself_patches_seed1"]
    assert str(Run(tmp_path, 1).output("clipself_patches") / "clipself.safetensors") in (
        evaluated.arguments
    )
    assert "--window" in steps["regions_clipself_windowed_seed0"].arguments


def test_regions_by_hand(tmp_path):
    rows = region_rows(tmp_path)
    line = next(one for one in regions.table_of(rows).splitlines() if "clipself_patches" in one)
    assert line.count("61.0 ± 1.4") == 6 and "30.0 ± 0.0" in line
    # from 10 to 61 of 10 to 90
    assert regions.gap_closed(rows, "clipself_patches", "boxes 160") == pytest.approx(51 / 80)


def test_students_that_are_not_measured_again_keep_their_rows():
    before = [{"student": one.name, "seed": 0, "mIoU": 1.0} for one in regions.STUDENTS]
    new = [{"student": "clipself_patches", "seed": seed, "mIoU": 2.0} for seed in (1, 0)]
    found = [(row["student"], row["seed"], row["mIoU"]) for row in regions.joined(new, before)]
    assert found == [
        ("original", 0, 1.0),
        ("clipself_patches", 0, 2.0),
        ("clipself_patches", 1, 2.0),
        ("clipself_proposals", 0, 1.0),
        ("original_windowed", 0, 1.0),
        ("clipself_windowed", 0, 1.0),
    ]


def test_a_cache_per_source_then_a_training_from_it(tmp_path):
    steps = dense_teacher.steps(tmp_path, [0])
    Pipeline(steps, tmp_path)  # every step comes after those it needs
    found = {step.name: step for step in steps}
    refined = found["cache_vit_dense_refined_seed0"]
    assert refined.arguments[-5:] == dense_teacher.DENSE
    assert "clipself_proposals_seed0" in refined.needs
    trained = found["vild_ensemble_vit_crops_seed0"]
    assert {"cache_vit_crops_seed0", "cache_vit_crops_vocabulary_seed0"} <= set(trained.needs)
    assert trained.arguments[-1].endswith("cache_vit_crops_vocabulary/vocabulary.safetensors")


def test_the_page_is_made_of_the_sections_that_there_are(tmp_path):
    args = argparse.Namespace(docs=tmp_path / "docs")
    rows = region_rows(tmp_path / "runs")
    regions.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0
    benchmark.write_clipself_page(args.docs, "clipself_regions", {**ORIGIN, "rows": rows})
    text = (args.docs / "results-clipself.md").read_text()
    assert "image crops by the CLS embedding: 90.0" in text and "| 64 %" in text
    assert "ViLD's teacher" not in text
    teacher = [
        {"source": "crops", "seed": seed, "cosine to crops": 1.0, "box AP50_novel": 30.0 + seed}
        for seed in (0, 1)
    ]
    benchmark.write_clipself_page(args.docs, "clipself_teacher", {**ORIGIN, "rows": teacher})
    text = (args.docs / "results-clipself.md").read_text()
    assert "1.000 ± 0.000" in text and "30.5 ± 0.7" in text and "mAcc" in text


@pytest.mark.skipif(
    not (DOCS / "results" / "clipself_regions.json").exists(), reason="not measured yet"
)
def test_the_page_in_the_docs_is_made_of_the_documents_there(tmp_path):
    shutil.copytree(DOCS / "results", tmp_path / "results")
    document = json.loads((DOCS / "results" / "clipself_regions.json").read_text())
    benchmark.write_clipself_page(tmp_path, "clipself_regions", document)
    page = "results-clipself.md"
    assert (tmp_path / page).read_text() == (DOCS / page).read_text()
