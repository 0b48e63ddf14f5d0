import pytest
import torch
from torch import nn

from ovd_d2.modeling.norms import set_batch_norms


def network():
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.SyncBatchNorm(3))


def test_momentum_and_eps_reach_every_norm():
    model = network()
    set_batch_norms(model, momentum=0.003, eps=1e-4, biased_variance=False)
    assert {(norm.momentum, norm.eps) for norm in model[1:]} == {(0.003, 1e-4)}


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_the_running_variance(norm, biased):
    module = norm(1)
    set_batch_norms(module, momentum=0.5, eps=1e-5, biased_variance=biased)
    x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)  # variance 1, of one less: 2
    module(x)
    assert module.running_var.item() == pytest.approx(0.5 + 0.5 * (1 if biased else 2))
    assert module.running_mean.item() == pytest.approx(0.5)
    module.eval()(x)
    assert module.running_var.item() == pytest.approx(1.0 if biased else 1.5)


def test_gradients_are_the_same():
    torch.manual_seed(0)
    x = torch.randn(4, 2, 5, 5)
    gradients = []
    for biased in (False, True):
        torch.manual_seed(1)
        model = network()
        set_batch_norms(model, momentum=0.1, eps=1e-5, biased_variance=biased)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        assert torch.equal(first, second)
