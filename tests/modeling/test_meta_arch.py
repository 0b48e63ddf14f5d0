"""The meta-architecture's own option: a compiled backbone under unchanged names."""

import torch
from detectron2.modeling import build_model

from tests.tiny import tiny_config, tiny_input, tiny_vocabulary


def test_the_compiled_backbone_is_run_and_the_state_dict_keeps_its_keys(monkeypatch):
    cfg = tiny_config("vild")
    plain = build_model(cfg)
    runs = []

    def compile_by_counting(function):  # the real compiler takes a minute
        return lambda *args: runs.append(function) or function(*args)

    monkeypatch.setattr(torch, "compile", compile_by_counting)
    cfg.MODEL.OVD.COMPILE_BACKBONE = True
    model = build_model(cfg)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict())
    for one in (plain, model):
        one.eval().set_vocabulary(tiny_vocabulary())
    with torch.no_grad():
        expected, found = (one([tiny_input()])[0]["instances"] for one in (plain, model))
    assert torch.equal(found.scores, expected.scores)
    assert len(runs) == 1
