"""When the data sets of this package are registered, and beside whom."""

import logging
import subprocess
import sys

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import ovd_d2
from ovd_d2.data import builtin
from ovd_d2.data.categories import get_categories
from ovd_d2.data.registration import DataSet, known_names, offer, register_data_sets
from tests.catalog import forget
from tests.tiny import tiny_config, tiny_vocabulary

# What Detic registers when it is imported.
DETIC = (
    "lvis_v1_train_norare",
    "objects365_v2_val",
    "coco_generalized_zeroshot_val",
    "coco_zeroshot_train_oriorder",
)
# A project that registers these names with files of its own, as a module; and the backbones of
# unilm's DiT and of DiffusionDet.
PROJECT = f"""
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY

def build_vit_fpn_backbone(cfg, input_shape): ...
def build_timm_fpn_backbone(cfg, input_shape): ...

BACKBONES = (build_vit_fpn_backbone, build_timm_fpn_backbone)
for one in BACKBONES:
    BACKBONE_REGISTRY.register(one)
for name in {DETIC}:
    DatasetCatalog.register(name, lambda: ["theirs"])
    MetadataCatalog.get(name).set(
        json_file=f"theirs/{{name}}.json", evaluator_type="coco", thing_classes=["ant"]
    )

def check():
    import ovd_d2
    for _ in range(2):
        ovd_d2.register_data_sets()
    for name in {DETIC}:
        assert DatasetCatalog.get(name) == ["theirs"], name
        assert MetadataCatalog.get(name).json_file == f"theirs/{{name}}.json", name
    assert "lvis_v1_minival" in DatasetCatalog
    for one in BACKBONES:
        assert BACKBONE_REGISTRY.get(one.__name__) is one
        ours = BACKBONE_REGISTRY.get(one.__name__.replace("build_", "build_ovd_"))
        assert ours.__module__ == "ovd_d2.modeling.backbone"
"""
CODES = {
    "project first": "import project, ovd_d2; project.check()",
    "ovd_d2 first": "import ovd_d2, project; project.check()",
    "after the config": """
import ovd_d2
from detectron2.config import get_cfg
from ovd_d2.data.categories import get_categories
ovd_d2.add_ovd_config(get_cfg())
get_categories("lvis_v1_train")
import project
project.check()
""",
    "alone": """
from detectron2.data import DatasetCatalog, MetadataCatalog
names = DatasetCatalog.list()
metadata = {name: MetadataCatalog.get(name).as_dict() for name in names}
import ovd_d2
assert DatasetCatalog.list() == names
assert {name: MetadataCatalog.get(name).as_dict() for name in names} == metadata
""",
}
# Each code in a child of a process that has imported what takes seconds, but not us.
FORKS = """
import os, sys, traceback
import detectron2.data, detectron2.evaluation, detectron2.modeling, open_clip

failed = []
for name, code in CODES.items():
    child = os.fork()
    if child == 0:
        try:
            exec(code, {})
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.waitpid(child, 0)[1]:
        failed.append(name)
sys.exit(f"failed: {failed}" if failed else 0)
"""


def test_importing_alone_and_beside_a_project_of_the_same_names_in_any_order(tmp_path):
    (tmp_path / "project.py").write_text(PROJECT)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); CODES = {CODES}\n{FORKS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def offered(monkeypatch):
    """The one data set of this package, under a name of its own; returns the name."""
    name = "tests_offered"
    data_set = DataSet(name, "one/a.json", "one/", lambda *paths: [list(paths)], "coco")
    monkeypatch.setattr("ovd_d2.data.registration._offered", {})
    monkeypatch.setattr("ovd_d2.data.registration.systems", list)  # none offers more
    offer(data_set)
    yield name
    forget(name)


def test_the_folder_of_all_data_sets_is_read_at_the_first_use(offered, monkeypatch):
    assert offered in known_names() and offered not in DatasetCatalog
    monkeypatch.setenv("DETECTRON2_DATASETS", "/later")
    register_data_sets(["another"])
    assert offered not in DatasetCatalog
    register_data_sets([offered])
    assert DatasetCatalog.get(offered) == [["/later/one/a.json", "/later/one/", offered]]
    metadata = MetadataCatalog.get(offered)
    assert (metadata.json_file, metadata.image_root) == ("/later/one/a.json", "/later/one/")


@pytest.mark.parametrize(("file", "said"), [("/all/one/a.json", 0), ("/theirs.json", 1)])
def test_the_set_of_another_project_stays_and_the_log_says_so_once(
    offered, monkeypatch, caplog, file, said
):
    monkeypatch.setattr("ovd_d2.data.registration._reported", set())
    monkeypatch.setattr("ovd_d2.data.registration._registered", set())
    monkeypatch.setenv("DETECTRON2_DATASETS", "/all")
    caplog.set_level(logging.INFO, "ovd_d2")
    DatasetCatalog.register(offered, lambda: ["theirs"])
    MetadataCatalog.get(offered).json_file = file
    register_data_sets()
    register_data_sets()
    assert DatasetCatalog.get(offered) == ["theirs"]
    messages = [one for one in caplog.messages if f"'{offered}'" in one]
    assert len(messages) == said
    assert all(file in one and "/all/one/a.json" in one for one in messages)


def test_an_unknown_name_lists_those_that_are_not_registered_yet():
    forget("lvis_v1_minival")
    with pytest.raises(KeyError, match=r"'lvis_v1_mini'.*lvis_v1_minival"):
        get_categories("lvis_v1_mini")


def test_plugging_in_registers_what_the_config_names_and_no_more(tmp_path):
    tiny_vocabulary().save(tmp_path / "vocabulary.safetensors")
    cfg = tiny_config()
    cfg.MODEL.OVD.VOCABULARY = str(tmp_path / "vocabulary.safetensors")
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("lvis_v1_train_norare",), ("coco_2017_val",)
    forget(*DETIC)
    ovd_d2.plug(cfg)
    assert [name in DatasetCatalog for name in DETIC] == [True, False, False, False]


def test_names_of_pictograms():
    for folder in builtin.PICTOGRAM_SETS:
        assert f"{folder}_train_all" in known_names()
