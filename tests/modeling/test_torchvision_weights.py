"""A ResNet of torchvision in Detectron2: every weight has a place and the features are the same."""

import pytest
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone

from ovd_d2.modeling.torchvision_weights import PREFIX, convert_resnet


def detectron2_resnet(depth):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    if depth < 50:
        cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    return build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()


def torchvision_resnet(name):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)(weights=None).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(part.weight, 1.0, 0.1)
            torch.nn.init.normal_(part.running_mean, std=0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 1.5)
    return model


@pytest.mark.parametrize(("name", "depth"), [("resnet18", 18), ("resnet50", 50)])
@torch.no_grad()
def test_features_are_the_same(name, depth):
    source, found = torchvision_resnet(name), detectron2_resnet(depth)
    weights, left_out = convert_resnet(source.state_dict())
    found.load_state_dict({key.removeprefix(PREFIX): one for key, one in weights.items()})
    assert len(weights) + len(left_out) == len(source.state_dict())
    image = torch.randn(1, 3, 64, 96)
    expected = source.maxpool(source.relu(source.bn1(source.conv1(image))))
    features = found(image)
    for stage in range(1, 5):
        expected = source.get_submodule(f"layer{stage}")(expected)
        torch.testing.assert_close(features[f"res{stage + 1}"], expected, rtol=1e-4, atol=1e-4)


def test_another_network_is_refused():
    state = torchvision.models.vgg11(weights=None).state_dict()
    with pytest.raises(ValueError, match="weights have no place in a ResNet, first features.0"):
        convert_resnet(state)
    with pytest.raises(ValueError, match="0 of 0 weights"):
        convert_resnet({})
