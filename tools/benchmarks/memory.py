"""The memory that a piece of code needs beyond what is there before it."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


def peak_memory(thing: Callable[[], Any], device: str = "cpu") -> int:
    """Bytes of tensors alive at once at the worst moment, those from before not counted.

    What kernels take past PyTorch's allocator is not seen (on the CPU: topk's own copy of what it
    sorts).

    Args:
        thing: is called once; call it before to leave out what only a first call needs.
        device: that it runs on.
    """
    if torch.device(device).type == "cuda":
        return _cuda_peak(thing)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")  # there is one cycle
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            thing()
    current = peak = 0
    for size in _allocations(profiler):
        current += size
        peak = max(peak, current)
    return peak


def _cuda_peak(thing: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    thing()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _allocations(profiler: profile) -> list[int]:
    """Bytes of every allocation (positive) and release (negative), in their order.

    They are in the exported trace alone: the profiler's own tables have sums.
    """
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]"]
    return [event["args"]["Bytes"] for event in sorted(memory, key=lambda event: event["ts"])]
