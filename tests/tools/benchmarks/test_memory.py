"""Peak memory of tensors, against sizes known beforehand."""

import torch
from benchmarks.memory import peak_memory

FLOATS = 250_000
SIZE = 4 * FLOATS


def test_what_is_alive_at_once_is_counted_and_the_rest_not():
    def thing():
        first = torch.zeros(FLOATS)
        second = first.double()
        del first
        return second, torch.zeros(FLOATS)  # where `first` was: no more than before

    used = peak_memory(thing)
    assert 3 * SIZE <= used < 3 * SIZE + 1000


def test_what_an_operation_takes_inside_is_counted():
    values = torch.rand(FLOATS)
    outside = peak_memory(lambda: values.sum())
    assert outside < 1000
    assert peak_memory(lambda: torch.isfinite(values).all()) >= SIZE  # |values| is in between


def test_what_was_there_before_is_not_counted():
    before = [torch.zeros(10 * FLOATS)]

    def thing():
        before.clear()
        return torch.zeros(FLOATS)

    assert SIZE <= peak_memory(thing) < SIZE + 1000


def test_nothing():
    assert peak_memory(lambda: None) == 0
