"""Steps that are commands: each is printed, run, timed and skipped when it is already done."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ovd_d2.files import atomic_write_json, fingerprint_json, sha256_file
from ovd_d2.pipeline.status import StatusLine
from ovd_d2.pipeline.step import CONFIG_OPTION, Step

POLL_SECONDS = 0.2


class StepFailed(RuntimeError):
    """A step's command ended with an error; what it had done is kept for the next run."""


@dataclass
class _Running:
    """A step whose command is at work."""

    step: Step
    process: subprocess.Popen[bytes]
    log: Path
    start: float = field(default_factory=time.perf_counter)

    def failure(self) -> StepFailed:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
        return StepFailed(
            f"step '{self.step.name}' failed (exit status {self.process.returncode}); full log: "
            f"{self.log}\n{tail}\n"
            "Mend the cause and run the same command again: finished steps are not repeated."
        )


def repository_root() -> Path:
    """The checkout this package is installed from (tools/ and configs/ are not in the package)."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "tools").is_dir():
        raise FileNotFoundError(f"{root} has no tools/: run from a checkout of ovd_d2")
    return root


def _config_values(step: Step) -> dict[str, Any] | None:
    """What the step's config says, its base files included: another comment changes nothing."""
    if CONFIG_OPTION not in step.arguments:
        return None
    file = repository_root() / step.arguments[step.arguments.index(CONFIG_OPTION) + 1]
    return CfgNode.load_yaml_with_base(str(file))


def _is_made(step: Step) -> bool:
    """Whether its product is there; commands run in the repository's folder."""
    return (repository_root() / step.product).exists()


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """As by Ctrl-C; else the commands would go on alone, and the next run start them beside."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Pipeline:
    """Runs steps in the order of their needs, several at a time, each one only once.

    A step is done when its record says that this very command, after these very predecessors and
    with this very config, has made its product. Killed at any point, the next run continues with
    the steps in hand; the long ones resume inside, too.
    """

    def __init__(self, steps: Sequence[Step], folder: Path, jobs: int | None = None) -> None:
        """
        Args:
            steps: every step after those it needs.
            folder: keeps the records (`steps/<name>.json`) and logs (`logs/<name>.log`).
            jobs: how many run at a time; by default two where there are two cores. (Two processes
                of one thread train twice as much as one of two threads.)
        """
        cores = os.cpu_count() or 1
        self.jobs = jobs or min(2, cores)
        self._threads = max(1, cores // self.jobs)
        self._steps = steps
        self._folder = folder
        self._histories = self._fingerprints()

    def run(self) -> dict[str, float]:
        """Runs what is not done yet.

        Returns:
            Seconds each step took when it was run.

        Raises:
            StepFailed: after the other running steps have been stopped.
        """
        seconds: dict[str, float] = {}
        waiting = [step for step in self._steps if not self._recall(step, seconds)]
        running: list[_Running] = []
        with StatusLine() as status, _stopped_by_sigterm():
            try:
                while waiting or running:
                    self._start_ready(waiting, running, seconds, status)
                    status.show({one.step.name: one.log for one in running})
                    time.sleep(POLL_SECONDS)
                    self._collect(running, seconds, status)
            except KeyboardInterrupt:
                status.print("\nstopped: run the same command again to go on")
                raise
            finally:
                for one in running:
                    one.process.terminate()
                    one.process.wait()
        return seconds

    def _fingerprints(self) -> dict[str, str]:
        histories: dict[str, str] = {}
        for step in self._steps:
            before = [histories[name] for name in step.needs]
            inputs: list[Any] = [sha256_file(one) for one in step.inputs]
            if step.settings is not None:
                inputs.append(step.settings)
            histories[step.name] = fingerprint_json(
                [_config_values(step), before, step.script, step.arguments, *inputs]
            )
        return histories

    def _record(self, step: Step) -> Path:
        return self._folder / "steps" / f"{step.name}.json"

    def _remember(self, step: Step, seconds: float | None) -> None:
        content = {"history": self._histories[step.name], "seconds": seconds}
        atomic_write_json(self._record(step), content)

    def _recall(self, step: Step, seconds: dict[str, float]) -> bool:
        """Whether the step is done; if it was begun in another form, its folder is emptied."""
        record = self._record(step)
        before = json.loads(record.read_text()) if record.exists() else {}
        if before.get("history") != self._histories[step.name]:
            if step.folder is not None and step.folder.exists():
                print(f"{step.name}: begun in another form; emptying {step.folder}", flush=True)
                shutil.rmtree(step.folder, ignore_errors=True)
            return False
        if before["seconds"] is None or not _is_made(step):
            return False
        print(f"{step.purpose}: done before ({before['seconds']:.0f} s)", flush=True)
        seconds[step.name] = before["seconds"]
        return True

    def _start_ready(
        self,
        waiting: list[Step],
        running: list[_Running],
        seconds: dict[str, float],
        status: StatusLine,
    ) -> None:
        for step in list(waiting):
            if len(running) >= self.jobs:
                return
            if all(name in seconds for name in step.needs):
                waiting.remove(step)
                running.append(self._start(step, status))

    def _start(self, step: Step, status: StatusLine) -> _Running:
        command = [sys.executable, step.script, *step.arguments]
        status.print(f"\n{step.purpose}\n  $ {shlex.join(['python', *command[1:]])}")
        self._remember(step, None)
        log = self._folder / "logs" / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        with log.open("wb") as stream:
            process = subprocess.Popen(
                command,
                cwd=repository_root(),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        return _Running(step, process, log)

    def _collect(
        self, running: list[_Running], seconds: dict[str, float], status: StatusLine
    ) -> None:
        for one in list(running):
            code = one.process.poll()
            if code is None:
                continue
            running.remove(one)
            if code != 0 or not _is_made(one.step):
                raise one.failure()
            seconds[one.step.name] = time.perf_counter() - one.start
            self._remember(one.step, seconds[one.step.name])
            status.print(f"  {one.step.name}: {seconds[one.step.name]:.0f} s")
