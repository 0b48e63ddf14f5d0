import subprocess

from ovd_d2.benchmark import documents


def test_a_document_says_where_its_rows_come_from():
    document = documents.make_document("python x", [{"a": 1}])
    assert document["rows"] == [{"a": 1}]
    assert documents.current_commit() == document["commit"] != ""
    sentence = documents.origin({**document, "date": "2026-01-02", "commit": "c0ffee1"})
    assert sentence == "Written by `python x`\non 2026-01-02, with the code of c0ffee1"


def test_outside_of_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(documents, "repository_root", lambda: tmp_path)
    assert documents.current_commit() == "unknown"


def test_without_git_the_commit_is_unknown(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert documents.current_commit() == "unknown"
