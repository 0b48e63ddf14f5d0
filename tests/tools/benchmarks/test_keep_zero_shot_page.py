"""The commands of `tools/benchmark.py keep-zero-shot`, and the page that they end in."""

import json
from pathlib import Path

import pytest
from benchmarks import keep_zero_shot
from benchmarks.keep_zero_shot import ALONE, BEFORE, KEPT, PLAIN, REPLAY, REPLAYED

from ovd_d2.engine.run import load_config
from ovd_d2.pictograms.dataset import tuning
from ovd_d2.pictograms.steps import Run
from ovd_d2.pipeline.pipeline import repository_root

DOCS = Path(__file__).parents[3] / "docs"
NUMBERS = {  # new, novel, base; of seed 0, and of seed 1
    BEFORE: ((2.0, 20.0, 40.0), (4.0, 30.0, 40.0)),
    PLAIN: ((50.0, 5.0, 30.0), (60.0, 6.0, 30.0)),
    KEPT: ((48.0, 19.0, 38.0), (57.0, 30.0, 38.0)),
    REPLAYED: ((50.0, 20.0, 39.0), (60.0, 15.0, 39.0)),
}
MIXTURES = [
    {"share": share, "new": new, "old": old}
    for share, new, old in ((0.0, 2.0, 20.0), (0.5, 48.0, 19.6), (1.0, 50.0, 5.0))
]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


@pytest.fixture
def rows(tmp_path):
    for seed in (0, 1):
        run = Run(tmp_path, seed)
        for one in (ALONE, REPLAY):
            choice = {"taken": 0.5, "mixtures": MIXTURES}
            write(run.output(one.name) / "kept" / "results.json", choice)
        for what, numbers in NUMBERS.items():
            new, novel, base = numbers[seed]
            sets = {
                "pictograms_v1_tuning_val": {"bbox": {"AP": new}},
                "pictograms_v1_tuning_val_old": {"bbox": {"AP_novel": novel, "AP_base": base}},
            }
            folder = run.output(keep_zero_shot.REPORTS[what])
            write(folder / "transfer" / "results.json", {"data_sets": sets})
    return keep_zero_shot.collect_rows(tmp_path, [0, 1])


def test_each_step_comes_after_what_it_reads(tmp_path):
    found = {step.name: step for step in keep_zero_shot.steps(tmp_path, [0, 1])}
    names = list(found)
    for step in found.values():
        assert all(names.index(one) < names.index(step.name) for one in step.needs)
        assert (repository_root() / step.script).is_file()
    order = ["vild_ensemble", "tuning", "tuning_mixed", "tuning_replay", "tuning_replayed"]
    places = [names.index(f"{one}_seed1") for one in order]
    assert places == sorted(places)
    assert found["tuning_data"].settings["names"] == tuning.NEW_NAMES  # others are drawn anew
    assert {"data", "tuning_data"} <= set(found["tuning_joint"].needs)  # it has names of both
    assert {f"{one}_seed1" for one in ("vild_ensemble", "tuning_proposals")} <= set(
        found["tuning_seed1"].needs
    )


def test_what_is_tuned_mixed_and_reported(tmp_path):
    found = {step.name: step.arguments for step in keep_zero_shot.steps(tmp_path, [0])}
    before = str(Run(tmp_path, 0).weights("vild_ensemble"))
    options = found["tuning_seed0"][found["tuning_seed0"].index("SEED") :]
    cfg = load_config(str(repository_root() / ALONE.config), options)
    assert before == cfg.MODEL.WEIGHTS and cfg.DATASETS.TRAIN == ("pictograms_v1_tuning_train",)
    assert cfg.MODEL.VILD.DISTILLATION.ONLINE.PROPOSALS.endswith("seed0/tuning_proposals")
    beside = found["tuning_replay_seed0"][found["tuning_replay_seed0"].index("SEED") :]
    joint = load_config(str(repository_root() / REPLAY.config), beside)
    assert joint.MODEL.VILD.DISTILLATION.CACHE.endswith("seed0/cache")
    assert REPLAY.sets == joint.DATASETS.TRAIN
    mixed = found["tuning_mixed_seed0"]
    assert mixed[-4:] == ("OUTPUT_DIR", cfg.OUTPUT_DIR, "MODEL.WEIGHTS", before)
    chosen_by = {mixed[mixed.index(option) + 1] for option in ("--new", "--old")}
    assert chosen_by == {"pictograms_v1_tuning_choose", "pictograms_v1_tuning_choose_old"}
    reported = [found[f"tuning_{one}_seed0"] for one in ("before", "plain", "kept")]
    assert all(not chosen_by & set(one) for one in reported)
    files = [before, f"{cfg.OUTPUT_DIR}/model_final.pth", f"{cfg.OUTPUT_DIR}/kept/model_kept.pth"]
    assert [one[-1] for one in reported] == files


def cells(table):
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]
    ]


def test_tables_by_hand(rows):
    assert cells(keep_zero_shot.table_of(rows))[1:3] == [
        ["plain tuning", "55.0 ± 7.1", "5.5 ± 0.7", "30.0 ± 0.0"],
        ["mixed weights", "52.5 ± 6.4", "24.5 ± 7.8", "38.0 ± 0.0"],
    ]
    assert cells(keep_zero_shot.targets_table(rows)) == [
        ["AP, new: replay / plain tuning >= 0.95", "1.00", "1.00, 1.00", "yes"],
        ["AP, old novel: replay / before >= 0.95", "0.75", "1.00, 0.50", "NO"],
        ["AP, new: mixed weights / plain tuning >= 0.95", "0.95", "0.96, 0.95", "yes"],
        ["AP, old novel: mixed weights / before >= 0.95", "0.97", "0.95, 1.00", "yes"],
    ]
    assert cells(keep_zero_shot.choice_table(rows, KEPT))[1] == [
        "0.5",
        "48.0 ± 0.0",
        "19.6 ± 0.0",
        "0, 1",
    ]
    rows[2]["new"] = 40.0
    assert cells(keep_zero_shot.targets_table(rows))[2][1:] == ["0.88", "0.80, 0.95", "NO"]


@pytest.mark.skipif(
    not (DOCS / "results" / "keep_zero_shot.json").exists(), reason="not measured yet"
)
def test_the_page_in_the_docs_is_made_of_the_document_there():
    document = json.loads((DOCS / "results" / "keep_zero_shot.json").read_text())
    page = (DOCS / "results-keep-zero-shot.md").read_text()
    assert keep_zero_shot.page(document) == page
