import json

from benchmarks import stored_types

from ovd_d2.pictograms.steps import Run


def test_one_build_and_one_training_a_seed_come_on_top(tmp_path):
    names = [step.name for step in stored_types.stored_type_steps(tmp_path, [0, 1])]
    for seed in (0, 1):
        cache, trained = f"cache_int8_seed{seed}", f"vild_ensemble_int8_seed{seed}"
        assert names.index(f"proposals_seed{seed}") < names.index(cache) < names.index(trained)
    steps = {step.name: step for step in stored_types.stored_type_steps(tmp_path, [0])}
    build, trained = steps["cache_int8_seed0"], steps["vild_ensemble_int8_seed0"]
    assert build.arguments[-2:] == ("--dtype", "int8")
    assert trained.arguments[-1] == str(build.folder)  # the last of two options of a name counts
    assert build.name in trained.needs


def test_differences_are_taken_seed_by_seed(tmp_path):
    novel = {"vild_ensemble": [40.0, 44.0], "vild_ensemble_int8": [41.0, 43.5]}
    for name, values in novel.items():
        for seed, value in enumerate(values):
            results = {"bbox": {"AP50_base": 60.0, "AP50_novel": value}, "segm": {"APr": 20.0}}
            output = Run(tmp_path, seed).output(name) / "inference"
            output.mkdir(parents=True)
            (output / "results.json").write_text(json.dumps(results))
    rows = stored_types.collect_rows(tmp_path, [1, 0])
    table = [line.split("|") for line in stored_types.table_of(rows).splitlines()]
    assert [cell.strip() for cell in table[2][1:5]] == [
        "float16",
        "60.0 ± 0.0",
        "42.0 ± 2.8",
        "20.0 ± 0.0",
    ]
    assert [cell.strip() for cell in table[4][1:5]] == ["int8 - float16", "+0.0", "+0.2", "+0.0"]
