"""No accident of a save loses what was saved before."""

import errno
import hashlib
import os
import random
import resource
import signal
import time
from functools import partial

import pytest
import torch

from ovd_d2.engine import checkpoint_files
from ovd_d2.engine.checkpoint_files import (
    LAST,
    checkpoint_fault,
    digest_path,
    find_last_good,
    remove_leftovers,
    write_checkpoint,
    write_last,
)
from ovd_d2.errors import SetupError
from tests.processes import CRASHED, die_at, exit_code, fork


def content(iteration, size=10_000):
    weights = torch.full((size,), float(iteration))
    return {"model": {"w": weights}, "trainer": {"iteration": iteration}, "iteration": iteration}


def save(folder, iteration, size=10_000, name=None):
    path = folder / (name or f"model_{iteration:07d}.pth")
    remove_leftovers(folder)
    write_checkpoint(path, content(iteration, size))
    write_last(folder, path.name)
    return path


def saved_iteration(path):
    loaded = torch.load(path, weights_only=True)
    assert (loaded["model"]["w"] == loaded["iteration"]).all()
    return loaded["iteration"]


@pytest.fixture
def three(tmp_path):
    """Checkpoints of iterations 4, 9 and 14."""
    return [save(tmp_path, iteration) for iteration in (4, 9, 14)]


def test_the_digest_is_that_of_sha256sum(three):
    digest, name = digest_path(three[0]).read_text().split()
    assert (digest, name) == (hashlib.sha256(three[0].read_bytes()).hexdigest(), three[0].name)


def test_the_last_one_is_found(three, tmp_path, caplog):
    assert find_last_good(tmp_path) == three[2]
    write_last(tmp_path, three[0].name)  # what it names counts, not the number
    assert find_last_good(tmp_path) == three[0]
    assert caplog.text == ""


def test_an_empty_folder_has_none(tmp_path):
    assert find_last_good(tmp_path) is None
    assert find_last_good(tmp_path / "not yet") is None
    torch.save({"w": torch.ones(1)}, tmp_path / "resnet.pth")  # of no training
    assert find_last_good(tmp_path) is None


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a bit": (flip_a_bit, "is damaged: its SHA-256"),
    "cut short": (lambda path: os.truncate(path, 500), "cut short"),
    "empty": (lambda path: os.truncate(path, 0), "is empty"),
    "missing": (lambda path: path.unlink(), "is missing"),
    "a web page": (lambda path: path.write_text("<html>"), "a web page"),
}


@pytest.mark.parametrize("with_digest", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_last_good_one_takes_its_place_and_both_are_named(
    three, tmp_path, caplog, damage, with_digest
):
    harm, words = DAMAGES[damage]
    harm(three[2])
    if not with_digest:  # as Detectron2 leaves them
        words = "checksum" if damage == "a bit" else words
        for path in three:
            digest_path(path).unlink()
    assert find_last_good(tmp_path) == three[1]
    assert words in caplog.text
    assert str(three[2]) in caplog.text
    assert f"Going on from {three[1]}" in caplog.text


@pytest.mark.parametrize("text", ["", "model_00", "\0\0\0", "../other/model.pth", "x" * 5000])
def test_a_damaged_last_checkpoint_file(three, tmp_path, caplog, text):
    (tmp_path / LAST).write_text(text)
    assert find_last_good(tmp_path) == three[2]
    assert f"Going on from {three[2]}" in caplog.text


def test_a_missing_last_checkpoint_file(three, tmp_path, caplog):
    (tmp_path / LAST).unlink()
    assert find_last_good(tmp_path) == three[2]
    assert "last_checkpoint is missing" in caplog.text


def test_the_highest_iteration_is_the_last_whatever_its_name(three, tmp_path):
    final = save(tmp_path, 19, name="model_final.pth")
    (tmp_path / LAST).unlink()
    torch.save({"w": torch.ones(1)}, tmp_path / "zzz.pth")  # of no training
    assert find_last_good(tmp_path) == final


def test_none_good_is_no_silent_start_from_scratch(three, tmp_path):
    for path in three:
        os.truncate(path, 500)
    with pytest.raises(SetupError) as caught:
        find_last_good(tmp_path)
    (problem,) = caught.value.problems
    assert all(str(path) in problem for path in three)
    assert "without --resume" in problem
    for path in three:
        path.unlink()
    with pytest.raises(SetupError, match=r"model_0000014\.pth is missing"):
        find_last_good(tmp_path)


def test_a_full_disk_leaves_what_there_was(three, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = checkpoint_files._HashingWriter.write
    written = []

    def full(self, data):
        written.append(data)
        if len(written) > 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, data)

    monkeypatch.setattr(checkpoint_files._HashingWriter, "write", full)
    for name in ("model_0000014.pth", "model_0000019.pth"):
        with pytest.raises((OSError, RuntimeError)):
            save(tmp_path, 19, name=name)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_leftovers_of_dead_processes_go_and_nothing_else(three, tmp_path):
    child = fork(lambda: None)
    exit_code(child)  # the number of no process
    dead, running = child, os.getppid()
    gone = [
        f".model_0000019.pth.{dead}-01234567.tmp",
        f".model_0000019.pth.sha256.{dead}-01234567.tmp",
        f".last_checkpoint.{dead}-01234567.tmp",
        f".model_0000019.pth.{os.getpid()}-01234567.tmp",  # an earlier process of our number
        "model_deleted.pth.sha256",
    ]
    stay = [
        f".model_0000019.pth.{running}-01234567.tmp",
        ".metrics.json.99-01234567.tmp",
        "model_0000019.pth.tmp",
        "metrics.json",
    ]
    for name in gone + stay:
        (tmp_path / name).touch()
    before = {path.name for path in tmp_path.iterdir()}
    remove_leftovers(tmp_path)
    assert before - {path.name for path in tmp_path.iterdir()} == set(gone)


def test_a_power_cut_at_each_step_of_a_save_loses_nothing(tmp_path):
    """Also where the name exists already: model_final.pth of a longer training."""
    for name in (None, "model_0000004.pth"):
        step, code = 0, CRASHED
        while code == CRASHED:
            folder = tmp_path / f"{name}-{step}"
            folder.mkdir()
            save(folder, 4)

            def crash(folder=folder, step=step, name=name):
                die_at(step)
                save(folder, 9, name=name)

            code = exit_code(fork(crash))
            found = find_last_good(folder)
            assert saved_iteration(found) in (4, 9)
            assert checkpoint_fault(found) == ""
            step += 1
        assert code == 0 and saved_iteration(found) == 9
        assert step > 8  # renames, flushes and removals were met


def saves_without_end(folder, iteration, size):
    while True:
        iteration += 5
        save(folder, iteration, size)
        for old in sorted(folder.glob("model_*.pth"))[:-3]:
            old.unlink()


def kill_while_saving(folder, rounds, size=200_000, seed=0):
    """Kills at random moments: how often nothing good was left, how often a file was half
    written, and the last iteration."""
    rng, lost, torn, last = random.Random(seed), 0, 0, 4
    save(folder, last, size)
    for _ in range(rounds):
        child = fork(partial(saves_without_end, folder, last, size))
        time.sleep(rng.uniform(0.005, 0.12))
        os.kill(child, signal.SIGKILL)
        exit_code(child)
        torn += any(folder.glob(".*.tmp"))
        try:
            found = saved_iteration(find_last_good(folder))
        except SetupError:
            found = -1
        lost += found < last  # also a step back would be a loss
        last = max(last, found)
    return lost, torn, last


def test_kills_at_random_moments_lose_no_run(tmp_path):
    lost, torn, last = kill_while_saving(tmp_path, rounds=15)
    assert lost == 0
    assert torn > 0 and last > 4  # some kills were in the middle of a save, some saves succeeded
    save(tmp_path, last + 5)
    assert not list(tmp_path.glob(".*.tmp"))


def test_a_disk_that_is_full_in_the_middle_is_said(tmp_path):
    def save():
        limit = 100_000  # bytes per file
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        with pytest.raises(OSError, match=r"File too large: '.*x\.pth'"):
            write_checkpoint(tmp_path / "x.pth", {"model": {"w": torch.ones(1_000_000)}})

    assert exit_code(fork(save)) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("digest", [b"", b"\xff\x00\x07", b"0" * 63, b"not found"])
def test_a_damaged_digest_file_condemns_no_checkpoint(three, tmp_path, digest):
    last = tmp_path / "model_0000014.pth"
    digest_path(last).write_bytes(digest)
    assert find_last_good(tmp_path) == last
