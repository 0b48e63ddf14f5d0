"""How the weight of example images is measured; the evaluation itself is the trainer's."""

import pytest
from benchmarks import examples
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from ovd_d2.entries import Entry
from ovd_d2.errors import SetupError
from ovd_d2.vocabulary import Categories
from tests.tiny import tiny_config, tiny_vocabulary

ROWS = [
    {"weight": weight, "bbox/AP_novel": novel, "bbox/AP50_novel": 2 * novel, "bbox/AP_base": 30.0}
    for weight, novel in ((0.0, 10.0), (0.25, 12.5), (1.0, 3.0))
]


@pytest.fixture
def boxes(monkeypatch):
    record = {"file_name": "a.png"}
    record["annotations"] = [{"category_id": 1, "bbox": [k, 2, 10, 20]} for k in range(7)]
    monkeypatch.setattr(DatasetCatalog, "get", lambda name: [record])
    categories = Categories(["bell", "dog", "kite"], [False, True, True])
    monkeypatch.setattr(examples, "get_categories", lambda name: categories)


def test_novel_names_get_boxes_of_theirs(boxes):
    names = [Entry("dog", novel=True), Entry("bell")]
    dog, bell = examples.entries_with_examples(names, "mine", 3)
    assert bell.examples == () and len(set(dog.examples)) == 3
    assert all(
        one.image == "a.png" and one.box[1:] == (2, one.box[0] + 10, 22) for one in dog.examples
    )
    assert examples.entries_with_examples(names, "mine", 3)[0] == dog


def test_a_novel_name_without_a_box(boxes):
    with pytest.raises(SetupError, match="'mine' has no box of 'kite' for an example"):
        examples.entries_with_examples([Entry("kite", novel=True)], "mine", 3)


def test_what_is_evaluated_looks_for_the_vocabulary(monkeypatch):
    model = build_model(tiny_config("vild_text"))
    model.set_vocabulary(tiny_vocabulary())
    other = tiny_vocabulary()
    other.embeddings = -other.embeddings
    seen = []

    def test(cfg, model):
        seen.append(model.vocabulary)
        return {"bbox": {"AP_novel": 1.234, "AP50_novel": 2.0, "AP_base": 3.0}}

    monkeypatch.setattr(examples.OpenVocabularyTrainer, "test", test)
    row = examples.evaluated(tiny_config("vild_text"), model, other)
    assert seen == [other] and row["bbox/AP_novel"] == 1.23


def test_the_page_says_which_weight_is_best():
    document = {"command": "python x", "date": "2026-01-02", "commit": "c0ffee1", "rows": ROWS}
    page = examples.page(document)
    assert examples.best_weight(ROWS) == 0.25 and "Best for novel names here: 0.25." in page
    assert "| 0, words alone " in page and "| 1, examples alone " in page
