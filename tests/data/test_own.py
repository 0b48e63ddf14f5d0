"""Data sets of one's own, from a yaml file."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from ovd_d2.data.categories import get_categories
from ovd_d2.data.own import register_from_environment, register_own
from ovd_d2.data.registration import register_data_sets
from ovd_d2.engine.build import get_base_dataset_dicts
from ovd_d2.engine.run import load_config
from ovd_d2.errors import SetupError
from tests.programs import run_program

CONFIG = "configs/pictograms/vild_text.yaml"
NAMES = ["anchor", "bell", "cat"]


@pytest.fixture
def folder(tmp_path):
    before = set(DatasetCatalog.list())
    image = {"id": 1, "file_name": "one.png", "height": 10, "width": 10}
    box = {"id": 1, "image_id": 1, "category_id": 30, "bbox": [1, 2, 3, 4], "iscrowd": 0}
    # ids with gaps, and not in the order of the names
    categories = [{"id": 10 * (3 - k), "name": name} for k, name in enumerate(NAMES)]
    dataset = {"images": [image], "annotations": [box], "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(dataset))
    yield tmp_path
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def write(folder, text):
    path = folder / "own.yaml"
    path.write_text(text)
    return path


def test_what_is_not_listed_as_base_is_novel(folder):
    text = "own_train: {json_file: train.json, image_root: pictures, base: [anchor, cat]}"
    assert register_own(write(folder, text)) == ["own_train"]
    table = get_categories("own_train")
    assert table.names == ["cat", "bell", "anchor"]  # by rising id
    assert table.novel == [False, True, False]
    (record,) = DatasetCatalog.get("own_train")
    assert record["file_name"] == str(folder / "pictures" / "one.png")
    assert table.names[record["annotations"][0]["category_id"]] == "anchor"


def test_without_a_list_everything_is_base(folder):
    register_own(write(folder, "own_val: {json_file: train.json, image_root: ''}"))
    assert get_categories("own_val").novel == [False] * 3


def test_an_empty_list_leaves_no_base(folder):
    register_own(write(folder, "own_val: {json_file: train.json, image_root: '', base: []}"))
    assert get_categories("own_val").novel == [True] * 3


def test_absolute_paths_stay(folder):
    text = f"own_train: {{json_file: {folder / 'train.json'}, image_root: /pictures}}"
    register_own(write(folder, text))
    assert MetadataCatalog.get("own_train").image_root == "/pictures"


def test_how_it_is_evaluated(folder):
    lines = "json_file: a.json, image_root: i"
    text = f"my_plain: {{{lines}}}\nmy_other: {{{lines}, evaluator_type: phrases}}"
    (folder / "kinds.yaml").write_text(text)
    register_own(folder / "kinds.yaml")
    kinds = {name: MetadataCatalog.get(name).evaluator_type for name in ("my_plain", "my_other")}
    assert kinds == {"my_plain": "coco", "my_other": "phrases"}


def test_a_misspelt_base_name_is_refused(folder):
    register_own(write(folder, "own: {json_file: train.json, image_root: '', base: [Cat]}"))
    with pytest.raises(ValueError, match=r"'own'.*\['Cat'\].*cat, bell, anchor"):
        get_categories("own")


def problems_of(folder, text):
    """The problems of a yaml file, each without the file's path, which it must begin with."""
    file = write(folder, text)
    before = set(DatasetCatalog.list())
    with pytest.raises(SetupError) as caught:
        register_own(file)
    assert set(DatasetCatalog.list()) == before
    for problem in caught.value.problems:
        assert problem.startswith(f"{file}: ") and "\n" not in problem
    return [problem.removeprefix(f"{file}: ") for problem in caught.value.problems]


def test_every_problem_is_listed_and_nothing_registered(folder):
    text = """
good: {json_file: train.json, image_root: ''}
typo: {json: train.json, image_root: '', base: cat}
coco_2017_val: {json_file: a.json, image_root: '', colour: red}
flat: train.json
none:
"""
    assert problems_of(folder, text) == [
        "typo: unknown key 'json'; did you mean json_file?",
        "typo: base: expected a list of names, [ant, bee], found 'cat'",
        "coco_2017_val: a data set of this name is registered already; choose another name",
        "coco_2017_val: unknown key 'colour'; known: json_file, image_root, base, evaluator_type",
        "flat: expected json_file and image_root below the name, found 'train.json'",
        "none: expected json_file and image_root below the name, found nothing",
    ]


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        *[(word, "a boolean") for word in ("yes", "no", "on", "Off", "true")],
        *[(word, "a number") for word in ("01", "010", "3.10", "0x10", "1_000", "1:30", "1.e+3")],
        *[(word, "nothing (null)") for word in ("null", "~", "Null")],
        ("2020-01-01", "a date"),
    ],
)
def test_a_base_name_that_yaml_does_not_read_as_text(folder, written, kind):
    text = f"own: {{json_file: train.json, image_root: '', base: [cat, {written}]}}"
    (problem,) = problems_of(folder, text)
    assert problem == f"own: base: yaml reads `{written}` as {kind}; write '{written}'"


def test_a_number_that_reads_as_written_is_a_name(folder):
    text = "own: {json_file: train.json, image_root: '', base: [7, 1.5, 1e3, '01', 'yes']}"
    register_own(write(folder, text))
    assert MetadataCatalog.get("own").base_classes == ["7", "1.5", "1e3", "01", "yes"]


def test_other_values_that_are_not_text(folder):
    text = """
2020: {json_file: train.json, image_root: ''}
own: {json_file: 007, image_root: [a], base: }
nested: {json_file: train.json, image_root: '', base: [[cat], {dog: cat}]}
blank: {json_file: train.json, image_root: '', base: [cat, ]}
"""
    assert problems_of(folder, text) == [
        "2020: as the name of a data set yaml reads `2020` as a number; write '2020'",
        "own: json_file: yaml reads `007` as a number; write '007'",
        "own: image_root: expected text, found ['a']",
        "own: base: expected a list of names, [ant, bee], found nothing",
        "nested: base: expected names, found ['cat'] among them",
        "nested: base: expected names, found {'dog': 'cat'} among them",
    ]


def test_a_dash_without_a_name(folder):
    text = "own:\n  json_file: train.json\n  image_root: ''\n  base:\n  - cat\n  -\n"
    (problem,) = problems_of(folder, text)
    assert problem == "own: base: yaml reads `` as nothing (null); write a name in quotes"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected 'name: {json_file: ..., image_root: ...}' entries, found an empty file"),
        ("# nothing yet\n", "found an empty file"),
        ("- own\n- other\n", "found ['own', 'other']"),
        ("own", "found 'own'"),
        ("a: [", "not a yaml file (line 1, column 5: "),
        ("own:\n\tjson_file: a\n", "line 2, column 1: found character '\\t' that cannot start any"),
        ("a: {}\nb: {}\na: {}\n", "line 3, column 1: 'a' is there a second time"),
        ("a: {json_file: 1, json_file: 2}", "column 19: 'json_file' is there a second time"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor for the tag"),
        ("a: 2020-13-45", "month must be in 1..12"),
        ("a: {}\n---\nb: {}", "not a yaml file (line 2, column 1: but found another document"),
    ],
)
def test_a_file_of_another_shape(folder, text, expected):
    (problem,) = problems_of(folder, text)
    assert expected in problem


def test_a_file_nested_too_deeply(folder):
    (problem,) = problems_of(folder, "[" * 1000)
    assert problem == "not a yaml file (it is nested too deeply)"


def test_a_tab_has_a_fix(folder):
    assert "indent with spaces, not tabs" in problems_of(folder, "own:\n\tjson_file: a\n")[0]


def test_a_bomb_of_aliases_is_a_short_message(folder):
    levels = [f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 9)}]" for k in range(1, 30)]
    problems = problems_of(folder, "\n".join(["l0: &l0 [cat]", *levels]))
    assert len(problems) == 30 and max(map(len, problems)) < 500


def test_a_missing_file_and_one_that_is_not_utf8_are_named(folder):
    with pytest.raises(SetupError, match=r"no file at .*nothing\.yaml"):
        register_own(folder / "nothing.yaml")
    file = folder / "own.yaml"
    file.write_text("own: {json_file: train.json, image_root: ''}", encoding="utf-16")
    with pytest.raises(SetupError, match=r"own\.yaml is not UTF-8 text \(byte 0xff .*UTF-16"):
        register_own(file)
    file.write_bytes("own: {json_file: café.json, image_root: ''}".encode("latin-1"))
    with pytest.raises(SetupError, match=r"own\.yaml is not UTF-8 text \(byte 0xe9 .*save it as"):
        register_own(file)


def test_a_byte_order_mark_is_no_part_of_a_name(folder):
    file = folder / "own.yaml"
    file.write_text("own: {json_file: train.json, image_root: ''}", encoding="utf-8-sig")
    assert register_own(file) == ["own"]


def test_home_and_prefixes_and_the_file_that_names_it(folder, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    file = write(folder, "own: {json_file: ~/train.json, image_root: 'datasets://coco'}")
    register_own(file)
    metadata = MetadataCatalog.get("own")
    assert metadata.json_file == "/home/somebody/train.json"
    assert metadata.image_root == "datasets://coco"
    assert metadata.own_file == str(file)


def test_merge_keys_serve_what_is_common(folder):
    text = """
a: &common {json_file: train.json, image_root: '', base: [cat]}
b: {<<: *common, base: [bell]}
"""
    register_own(write(folder, text))
    assert get_categories("b").novel == [True, False, True]


def test_the_environment_names_the_file(folder, monkeypatch):
    text = "own_train: {json_file: train.json, image_root: pictures}"
    monkeypatch.setenv("OVD_DATASETS", str(write(folder, text)))
    assert get_categories("own_train").names == ["cat", "bell", "anchor"]
    register_from_environment()  # nothing to do: the name is not registered twice
    monkeypatch.delenv("OVD_DATASETS")
    register_data_sets()


def test_a_fault_of_the_environments_file_is_raised_at_every_use(folder, monkeypatch):
    monkeypatch.setenv("OVD_DATASETS", str(write(folder, "own: {json: a}")))
    uses = [
        register_data_sets,
        lambda: get_categories("coco_2017_val"),
        lambda: get_base_dataset_dicts("own"),
        lambda: load_config("configs/pictograms/vild_text.yaml"),
    ]
    for use in uses:
        with pytest.raises(SetupError, match=r"OVD_DATASETS: .*own\.yaml: own: unknown key"):
            use()


@pytest.mark.parametrize("arguments", [["--help"], ["--config-file", CONFIG]])
def test_a_tool_says_it_in_one_message(folder, arguments):
    path = write(folder, "own: {json: a}")
    done = run_program("tools/check_setup.py", *arguments, OVD_DATASETS=path)
    if arguments == ["--help"]:
        assert done.status == 0 and "usage:" in done.stdout
        return
    assert done.status == 1
    assert "Traceback" not in done.stderr
    assert "own: unknown key 'json'; did you mean json_file?" in done.stderr
