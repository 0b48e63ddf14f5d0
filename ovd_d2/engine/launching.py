"""How the tools start their processes: Detectron2's `launch`, or torchrun around the tool."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

from ovd_d2.errors import SetupError
from ovd_d2.ranks import Ranks

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What torchrun sets in the environment of every process that it starts.
_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def add_launch_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `launch_processes`, named as in Detectron2's `default_argument_parser`."""
    group = parser.add_argument_group(
        "processes",
        "instead of these, torchrun may start the tool: torchrun --nproc-per-node 8 ...",
    )
    group.add_argument(
        "--num-gpus", type=int, default=1, help="processes on this machine, one per GPU (default 1)"
    )
    group.add_argument("--num-machines", type=int, default=1, help="machines in all (default 1)")
    group.add_argument(
        "--machine-rank", type=int, default=0, help="number of this machine, from 0 (default 0)"
    )
    group.add_argument(
        "--dist-url",
        default="auto",
        help="tcp://<address of machine 0>:<free port>; auto serves one machine (default auto)",
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Where a tool runs the teacher, of each process where there are several."""
    parser.add_argument(
        "--device",
        type=usable_device,
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="of the teacher: cpu, cuda, cuda:1, ... (default: cuda where there is one)",
    )


def usable_device(name: str) -> str:
    """The name, for argparse, if PyTorch knows it and finds that GPU on this machine."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise argparse.ArgumentTypeError(
            f"'{name}' is no device of PyTorch; expected cpu, cuda, cuda:1, ..."
        ) from None
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise argparse.ArgumentTypeError(
            f"'{name}' is not there: PyTorch finds {count} GPUs on this machine; cpu always works"
        )
    return name


def available_device(name: str, key: str = "MODEL.DEVICE") -> str:
    """The device, or where this machine lacks it the next best: a GPU, then "cpu".

    Which one is taken in its place is said in one line.

    Raises:
        SetupError: no device of PyTorch is called so.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise SetupError(
            [f"{key}: '{name}' is no device of PyTorch; expected cpu, cuda, cuda:1, ..."]
        ) from None
    count = torch.cuda.device_count()
    if (device.index or 0) < count if device.type == "cuda" else _works(device):
        return name
    taken = "cuda" if count else "cpu"
    if comm.is_main_process():
        logger.warning("%s is '%s', PyTorch finds %d GPUs: using %s.", key, name, count, taken)
    return taken


def _works(device: torch.device) -> bool:
    """Whether a tensor there has values; PyTorch has a word of its own for each kind that fails."""
    if device.type == "meta":  # asked for by who wants none
        return True
    try:
        return torch.ones(1, device=device).item() == 1
    except (RuntimeError, AssertionError, ImportError):  # NotImplementedError is a RuntimeError
        return False


def on_main_process(check: Callable[[], T]) -> T:
    """Rank 0 does `check` while the others wait; all ranks get its result.

    Raises:
        SetupError: `check` found problems, and this is the only process.
        SystemExit: the same with several: rank 0 has printed them, once, and all ranks end.
    """
    ranks = Ranks()
    if ranks.count == 1:
        return check()

    def checked() -> tuple[T | None, bool]:
        try:
            return check(), True
        except SetupError as error:
            print(error, file=sys.stderr, flush=True)  # before the other ranks end
            return None, False

    result, passed = ranks.on_rank_0(checked)
    if not passed:
        sys.exit(1)
    return result  # type: ignore[return-value]


def launch_processes(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run `main(args)` in as many processes as the arguments or torchrun say.

    A process that ends with an error ends the others on its machine.

    Args:
        main: a function of a module, so that other processes can find it.
        args: of `add_launch_arguments` or of Detectron2's `default_argument_parser`.
    """
    if under_torchrun():
        join_process_group()
        main(args)
        dist.destroy_process_group()
        return
    try:
        launch(
            main,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
        )
    except ProcessExitedException as error:
        # It left by sys.exit, having said why; a traceback of this process would hide that.
        sys.exit(f"process {error.error_index} of this machine ended with status {error.exit_code}")


def under_torchrun() -> bool:
    """Has torchrun (or a launcher that sets the same variables) started this process?"""
    return all(name in os.environ for name in _TORCHRUN)


def join_process_group() -> None:
    """Join the process group that torchrun's environment describes, as Detectron2's `launch` does.

    Over NCCL where every process of this machine has a GPU of its own, otherwise over gloo.
    """
    local_rank, local_count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    has_gpu = torch.cuda.device_count() >= local_count
    dist.init_process_group("nccl" if has_gpu else "gloo")
    comm.create_local_process_group(local_count)
    if has_gpu:
        torch.cuda.set_device(local_rank)
