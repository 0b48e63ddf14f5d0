"""Which mixture of the weights before and after a tuning is taken."""

import argparse

import pytest
import torch

from ovd_d2.engine.keep_zero_shot import Mixture, chosen, keep_zero_shot, mixtures_table
from ovd_d2.errors import SetupError
from tests.tiny import tiny_config

MIXTURES = [
    Mixture(0.0, 10.0, 40.0),
    Mixture(0.5, 50.0, 38.0),
    Mixture(0.75, 55.0, 37.9),
    Mixture(1.0, 56.0, 20.0),
]


@pytest.mark.parametrize(
    ("keep", "share"), [(1.0, 0.0), (0.95, 0.5), (0.9, 0.75), (0.5, 1.0), (0.0, 1.0)]
)
def test_the_best_on_new_names_that_keeps_enough(keep, share):
    assert chosen(MIXTURES, keep).share == share


def test_the_table():
    lines = mixtures_table(MIXTURES, MIXTURES[1]).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]] == [
        ["0 (before)", "10.0", "40.0", ""],
        ["0.5", "50.0", "38.0", "taken"],
        ["0.75", "55.0", "37.9", ""],
        ["1 (after)", "56.0", "20.0", ""],
    ]


def test_what_cannot_be_asked_is_named_at_once(tmp_path):
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS = str(tmp_path / "start.pth")
    with pytest.raises(SetupError) as caught:
        keep_zero_shot(
            cfg,
            argparse.Namespace(),
            after=str(tmp_path / "gone.pth"),
            new_set="a",
            old_set="b",
            shares=(0.5, 1.5),
        )
    first, second, third = caught.value.problems
    assert "MODEL.WEIGHTS" in first and "start.pth" in first
    assert "--after" in second and "gone.pth" in second
    assert third == "--shares: 1.5 is not from 0 to 1"


def test_a_data_set_that_is_none_is_named_by_the_options_that_asked_for_it(tmp_path):
    cfg = tiny_config()
    cfg.MODEL.WEIGHTS = after = str(tmp_path / "weights.pth")
    torch.save({"model": {}}, after)
    sets = {"new_set": "no_such_set", "old_set": "nor_this"}
    with pytest.raises(SetupError) as caught:
        keep_zero_shot(cfg, argparse.Namespace(), after=after, **sets)
    told = [one for one in caught.value.problems if "is not registered" in one]
    assert [one.partition(" is not")[0] for one in told] == [
        "--new or --old: 'no_such_set'",
        "--new or --old: 'nor_this'",
    ]
