import subprocess

from benchmarks import documents


def test_a_document_says_where_its_rows_come_from():
    document = documents.make_document("python x", [{"a": 1}])
    assert document["rows"] == [{"a": 1}]
    assert documents.current_commit() == document["commit"] != ""
    sentence = documents.origin({**document, "date": "2026-01-02", "commit": "c0ffee1"})
    assert sentence == "Written by `python x`\non 2026-01-02 at commit c0ffee1"


def test_changed_code_is_said_and_other_changes_are_not(monkeypatch, tmp_path):
    def git(*arguments):
        options = ["-c", "user.name=n", "-c", "user.email=e@x", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True)

    for folder in (*documents.CODE, "docs"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "one").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(documents, "repository_root", lambda: tmp_path)
    (tmp_path / "docs" / "one").write_text("2")
    commit = documents.current_commit()
    assert commit.isalnum() and commit != "unknown"
    (tmp_path / "ovd_d2" / "one").write_text("2")
    assert documents.current_commit() == f"{commit} with changes"


def test_outside_of_a_checkout_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(documents, "repository_root", lambda: tmp_path)
    assert documents.current_commit() == "unknown"


def test_without_git_the_commit_is_unknown(monkeypatch):
    def missing(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", missing)
    assert documents.current_commit() == "unknown"
