"""Steps that are commands: each one is printed, run, timed and skipped when it is already done."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ovd_d2.files import atomic_write_json, fingerprint_json


class StepFailed(RuntimeError):
    """A step's command ended with an error; what it had done is kept for the next run."""


@dataclass(frozen=True)
class Step:
    """One command of a pipeline.

    Attributes:
        name: a short unique name, also of its record under `steps/`.
        purpose: what the user gets from it, in one line.
        script: path of the script below the repository root.
        arguments: its arguments.
        product: the file that exists when the step is done.
        folder: what the step alone fills, if it is such. Emptied before a step that was begun in
            another form starts over, so that no half of one run is taken up by another.
    """

    name: str
    purpose: str
    script: str
    arguments: tuple[str, ...]
    product: Path
    folder: Path | None = None


def repository_root() -> Path:
    """The checkout this package is installed from (tools/ and configs/ are not in the package)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "tools").is_dir():
        raise FileNotFoundError(f"{root} has no tools/: the demo runs from a checkout of ovd_d2")
    return root


def run_steps(steps: Sequence[Step], folder: Path) -> dict[str, float]:
    """Runs what has not been done yet, in order.

    A step is done when its record says that this very command, after these very predecessors and
    with these very configs, has made its product. Killed at any point, the next run continues with
    the step in hand; the long ones resume inside, too.

    Args:
        steps: in order of dependency.
        folder: keeps the records (`steps/<name>.json`) and logs (`logs/<name>.log`).

    Returns:
        Seconds each step took when it was run.
    """
    seconds: dict[str, float] = {}
    history = _configs_fingerprint()
    for number, step in enumerate(steps, 1):
        history = fingerprint_json([history, step.script, step.arguments])
        record = folder / "steps" / f"{step.name}.json"
        title = f"[{number}/{len(steps)}] {step.purpose}"
        before = json.loads(record.read_text()) if record.exists() else {}
        same = before.get("history") == history
        if same and before["seconds"] is not None and step.product.exists():
            print(f"{title}: done before ({before['seconds']:.0f} s)", flush=True)
            seconds[step.name] = before["seconds"]
            continue
        print(f"\n{title}", flush=True)
        if not same and step.folder is not None:
            shutil.rmtree(step.folder, ignore_errors=True)
        atomic_write_json(record, {"history": history, "seconds": None})
        seconds[step.name] = _run(step, folder / "logs" / f"{step.name}.log")
        atomic_write_json(record, {"history": history, "seconds": seconds[step.name]})
    return seconds


def _configs_fingerprint() -> str:
    files = sorted((repository_root() / "configs").rglob("*.yaml"))
    return fingerprint_json([file.read_text() for file in files])


def _run(step: Step, log: Path) -> float:
    """Runs the command; its progress bar (stderr) goes to the terminal, its report to the log."""
    command = [sys.executable, step.script, *step.arguments]
    print(f"  $ {shlex.join(['python', *command[1:]])}", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with log.open("w") as stream:
        code = subprocess.run(command, cwd=repository_root(), stdout=stream).returncode
    if code != 0 or not step.product.exists():
        tail = "\n".join(log.read_text().splitlines()[-15:])
        raise StepFailed(
            f"step '{step.name}' failed (exit status {code}); full log: {log}\n{tail}\n"
            "Mend the cause and run the same command again: finished steps are not repeated."
        )
    return time.perf_counter() - start
