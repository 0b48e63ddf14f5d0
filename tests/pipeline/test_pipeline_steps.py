import json
import os
import signal
import time
from dataclasses import replace

import pytest

from ovd_d2.pipeline import pipeline
from ovd_d2.pipeline.pipeline import Pipeline, StepFailed
from ovd_d2.pipeline.status import _short, last_progress
from ovd_d2.pipeline.step import Step
from tests.processes import exit_code, fork


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A stand-in for the repository: a script that appends a line to the file it is given."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "tools").mkdir()
    script = tmp_path / "tools" / "write.py"
    script.write_text(
        "import sys, pathlib\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "path.parent.mkdir(parents=True, exist_ok=True)\n"
        "if 'fail' in sys.argv: print('the reason'); sys.exit(3)\n"
        "with path.open('a') as stream: stream.write(' '.join(sys.argv[2:]) + '\\n')\n"
    )
    monkeypatch.setattr(pipeline, "repository_root", lambda: tmp_path)
    return tmp_path


def run_steps(steps, folder, jobs=2):
    return Pipeline(steps, folder, jobs).run()


def make_step(checkout, name, *arguments, own_folder=True, needs=()):
    folder = checkout / "out" / name
    product = folder / "product.txt"
    return Step(
        name,
        f"make {name}",
        "tools/write.py",
        (str(product), *arguments),
        product,
        tuple(needs),
        folder if own_folder else None,
    )


def lines(step: Step) -> list[str]:
    return step.product.read_text().splitlines()


def test_a_second_run_does_nothing_and_keeps_the_times(checkout, capsys):
    steps = [make_step(checkout, "a"), make_step(checkout, "b")]
    first = run_steps(steps, checkout / "demo")
    second = run_steps(steps, checkout / "demo")
    assert first == second and sorted(first) == ["a", "b"]
    assert [len(lines(step)) for step in steps] == [1, 1]
    assert "done before" in capsys.readouterr().out


def test_the_command_is_printed_as_it_can_be_typed(checkout, capsys):
    step = make_step(checkout, "a", "two words")
    run_steps([step], checkout / "demo")
    assert f"$ python tools/write.py {step.product} 'two words'" in capsys.readouterr().out


def test_a_product_lies_where_the_command_ran(checkout):
    step = make_step(checkout, "a", own_folder=False)
    relative = replace(step, product=step.product.relative_to(checkout))
    for _ in range(2):
        run_steps([relative], checkout / "demo")
    assert len(lines(step)) == 1


def test_a_changed_step_starts_over_and_so_do_its_successors(checkout, capsys):
    later = make_step(checkout, "b", needs=["a"])
    run_steps([make_step(checkout, "a", "1"), later], checkout / "demo")
    changed = make_step(checkout, "a", "2")
    assert "emptying" not in capsys.readouterr().out
    run_steps([changed, later], checkout / "demo")
    assert f"a: begun in another form; emptying {changed.folder}" in capsys.readouterr().out
    assert lines(changed) == ["2"]  # the folder was emptied, not added to
    assert lines(later) == [""]


def test_a_step_starts_over_when_its_config_changes(checkout):
    folder = checkout / "configs"
    base, mine, other = (folder / f"{name}.yaml" for name in ("base", "mine", "other"))
    base.write_text("SOLVER:\n  MAX_ITER: 1\n")
    mine.write_text("_BASE_: base.yaml\nSEED: 1\n")
    other.write_text("SEED: 1\n")
    step = make_step(checkout, "a", "--config-file", str(mine), own_folder=False)
    later = make_step(checkout, "b", own_folder=False, needs=("a",))
    run_steps([step, later], checkout / "demo")
    other.write_text("SEED: 2\n")
    base.write_text("# a comment\nSOLVER:\n  MAX_ITER: 1\n")
    run_steps([step, later], checkout / "demo")
    assert len(lines(step)) == len(lines(later)) == 1
    base.write_text("SOLVER:\n  MAX_ITER: 2\n")
    run_steps([step, later], checkout / "demo")
    assert len(lines(step)) == len(lines(later)) == 2


def test_an_interrupted_step_is_continued_in_its_folder(checkout):
    step = make_step(checkout, "a")
    run_steps([step], checkout / "demo")
    record = checkout / "demo" / "steps" / "a.json"
    interrupted = {**json.loads(record.read_text()), "seconds": None}
    record.write_text(json.dumps(interrupted))
    run_steps([step], checkout / "demo")
    assert len(lines(step)) == 2  # what the first run left was still there


def test_a_lost_product_is_made_again(checkout):
    step = make_step(checkout, "a")
    run_steps([step], checkout / "demo")
    step.product.unlink()
    run_steps([step], checkout / "demo")
    assert len(lines(step)) == 1


def test_a_failure_tells_status_log_and_what_to_do(checkout):
    with pytest.raises(StepFailed, match=r"(?s)exit status 3.*a\.log.*the reason.*again"):
        run_steps([make_step(checkout, "a", "fail")], checkout / "demo")


def test_a_command_that_makes_nothing_has_failed(checkout):
    step = make_step(checkout, "a")
    elsewhere = Step("a", "", step.script, (str(checkout / "other.txt"),), step.product)
    with pytest.raises(StepFailed, match="exit status 0"):
        run_steps([elsewhere], checkout / "demo")


def test_the_repository_root_holds_the_tools():
    root = pipeline.repository_root()
    assert (root / "tools" / "train_net.py").is_file()


def test_a_step_waits_for_what_it_needs(checkout):
    order = []
    steps = [make_step(checkout, "a"), make_step(checkout, "b", needs=["a"])]
    pipeline = Pipeline(steps, checkout / "demo", jobs=2)
    start = pipeline._start

    def recording_start(step, status):
        order.append((step.name, steps[0].product.exists()))
        return start(step, status)

    pipeline._start = recording_start
    pipeline.run()
    assert order == [("a", False), ("b", True)]


def test_independent_steps_run_side_by_side(checkout):
    # Each waits for the other's file: one at a time they would never end.
    script = checkout / "tools" / "meet.py"
    script.write_text(
        "import sys, time, pathlib\n"
        "mine, other = map(pathlib.Path, sys.argv[1:])\n"
        "mine.write_text('here')\n"
        "end = time.time() + 20\n"
        "while not other.exists():\n"
        "    time.sleep(0.05)\n"
        "    if time.time() > end: sys.exit(1)\n"
    )
    one, two = checkout / "one", checkout / "two"
    steps = [
        Step("one", "", "tools/meet.py", (str(one), str(two)), one),
        Step("two", "", "tools/meet.py", (str(two), str(one)), two),
    ]
    assert sorted(run_steps(steps, checkout / "demo")) == ["one", "two"]


def test_a_failure_stops_the_others(checkout):
    script = checkout / "tools" / "sleep.py"
    script.write_text("import time\ntime.sleep(60)\n")
    sleeper = Step("sleeper", "", "tools/sleep.py", (), checkout / "never")
    start = time.monotonic()
    with pytest.raises(StepFailed, match="'bad'"):
        run_steps([sleeper, make_step(checkout, "bad", "fail")], checkout / "demo")
    assert time.monotonic() - start < 30


def test_progress_is_read_from_the_newest_bar(tmp_path):
    log = tmp_path / "a.log"
    bars = ["start:   5%|# | 1/20 [00:01<00:09, 2.0it/s]", "start:  45%|## | 9/20 [00:10<00:12]"]
    log.write_text("words\n" + "\r".join(bars))
    assert _short(last_progress(log)) == "45% 9/20 [00:10<00:12]"
    log.write_text("no bar yet")
    assert last_progress(log) == ""


def test_files_that_a_step_reads_are_part_of_its_record(checkout):
    step = make_step(checkout, "a", own_folder=False)
    (checkout / "labels.json").write_text("1")
    for content in ("1", "1", "2"):
        (checkout / "labels.json").write_text(content)
        run_steps([replace(step, inputs=(checkout / "labels.json",))], checkout / "demo")
    assert len(lines(step)) == 2


def test_values_that_a_script_takes_from_the_code_are_part_of_its_record(checkout):
    step = make_step(checkout, "a", own_folder=False)
    for names in (("anchor",), ("anchor",), ("sun",)):
        run_steps([replace(step, settings={"names": names})], checkout / "demo")
    assert len(lines(step)) == 2


def test_a_run_that_is_stopped_says_how_to_go_on(checkout, capsys, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.time, "sleep", stop)
    with pytest.raises(KeyboardInterrupt):
        run_steps([make_step(checkout, "a")], checkout / "demo")
    assert "stopped: run the same command again to go on" in capsys.readouterr().out


def test_a_run_that_is_terminated_stops_its_commands(checkout):
    # they went on alone, and the next run trained in the same folders beside them
    script = checkout / "tools" / "sleep.py"
    script.write_text(
        "import os, pathlib, sys, time\n"
        "pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    begun = checkout / "begun"
    step = Step("sleeper", "", "tools/sleep.py", (str(begun),), checkout / "never")
    run = fork(lambda: run_steps([step], checkout / "demo"))
    while not (begun.exists() and begun.read_text()):
        time.sleep(0.05)
    os.kill(run, signal.SIGTERM)
    assert exit_code(run) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)
