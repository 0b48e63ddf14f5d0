"""Steps with mixed precision run in it, and learn as those without."""

import pytest
import torch
from benchmarks.speed import training_step
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from tests.tiny import tiny_config, tiny_input, tiny_vocabulary


@pytest.mark.parametrize("amp", [False, True])
def test_a_step_changes_the_weights_and_amp_computes_in_half_precision(amp):
    torch.manual_seed(0)
    cfg = tiny_config("vild")
    model = build_model(cfg)
    model.set_vocabulary(tiny_vocabulary())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen = []
    model.backbone.register_forward_hook(lambda *call: seen.append(call[-1]["p2"].dtype))
    step = training_step(cfg, model, [[tiny_input()]], amp=amp)
    with EventStorage():
        step(0)
    assert seen == [torch.bfloat16 if amp else torch.float32]
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert "backbone.fpn_output2.weight" in changed
    assert all(p.isfinite().all() for p in model.parameters())
