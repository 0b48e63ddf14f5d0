"""Official checkpoints of both depths: random weights under the full list of their names."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from convert_weights import main, write
from detectron2.modeling import build_model
from torch.nn import functional as F

from ovd_d2.engine.build import build_open_vocabulary_model
from ovd_d2.engine.run import load_config
from ovd_d2.vild.detpro_weights import convert_weights
from ovd_d2.vild.official_weights import (
    TEXT_EMBEDDINGS,
    convert_variables,
    places,
    variable_shape,
)

COUNTS = {  # variables of the released models, optimiser slots not counted
    ("vild_r50", 50, False): 425,
    ("vild_ensemble_r50", 50, True): 463,
    ("vild_r152", 152, False): 425 + 5 * 102,
    ("vild_ensemble_r152", 152, True): 463 + 5 * 102,
}


def network(name, device="meta"):
    options = ["MODEL.DEVICE", device, "MODEL.OVD.VOCABULARY", ""]
    with torch.device(device):
        return build_model(load_config(f"configs/official/{name}.yaml", options)).state_dict()


def official_variables(name, depth, ensemble, *, value=None):
    """Of one value each: full sizes cost nothing as views."""
    state = network(name)
    shapes = {
        variable: variable_shape(variable, state[place.key].shape)
        for variable, place in places(depth, ensemble=ensemble).items()
    }
    shapes[TEXT_EMBEDDINGS] = (512, 1203)
    return {
        variable: np.broadcast_to(np.float32(k if value is None else value), shape)
        for k, (variable, shape) in enumerate(shapes.items())
    }


def weights_of(state):
    return {
        key: tuple(value.shape)
        for key, value in state.items()
        if not key.endswith(("num_batches_tracked", "pixel_mean", "pixel_std", "vocabulary"))
    }


@pytest.mark.parametrize(("name", "depth", "ensemble"), COUNTS)
def test_every_variable_has_its_place(name, depth, ensemble):
    variables = official_variables(name, depth, ensemble, value=1)
    assert len(variables) == COUNTS[name, depth, ensemble]
    converted = convert_variables({**variables, "global_step": np.array(1)})
    shapes = {key: value.shape for key, value in converted.weights.items()}
    assert shapes == weights_of(network(name))
    assert converted.left_out == {"global_step": "the step counter"}
    assert np.allclose(np.linalg.norm(converted.text_embeddings, axis=1), 1)


def test_optimiser_slots_are_left_out_and_said():
    variables = official_variables("vild_r50", 50, False, value=1)
    slot = "resnet50/conv2d/kernel/Momentum"
    converted = convert_variables({**variables, slot: variables["resnet50/conv2d/kernel"]})
    assert converted.left_out == {slot: "a slot of the optimiser"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("fpn/p6/bias"), "1 variables are missing, first fpn/p6/bias"),
        (lambda v: v.update({"head/x": 1}), "1 variables are none of the network's, first head/x"),
        (lambda v: v.clear(), "found none: is it an official ViLD checkpoint?"),
    ],
)
def test_foreign_and_damaged_checkpoints_are_refused(change, message):
    variables = official_variables("vild_r50", 50, False, value=1)
    change(variables)
    with pytest.raises(ValueError, match=message):
        convert_variables(variables)


def test_a_bias_before_a_norm_goes_into_its_mean():
    variables = official_variables("vild_r50", 50, False, value=1)
    head = "frcnn_layer_0/fast_rcnn_head"
    variables[f"{head}/conv_0/bias"] = np.full(256, 5, np.float32)
    variables[f"{head}/batch_normalization/moving_mean"] = np.full(256, 7, np.float32)
    weights = convert_variables(variables).weights
    assert set(weights["roi_heads.box_head.conv1.norm.running_mean"]) == {2}


def test_layouts():
    variables = official_variables("vild_r50", 50, False, value=1)
    head = "frcnn_layer_0/fast_rcnn_head"
    generator = np.random.default_rng(0)
    pooled = generator.normal(size=(3, 7, 7, 256)).astype(np.float32)  # N, height, width, channel
    kernel = generator.normal(size=(7 * 7 * 256, 1024)).astype(np.float32)
    variables[f"{head}/fc6/kernel"] = kernel
    variables[f"{head}/box-predict/bias"] = np.array([1, 2, 3, 4], np.float32)  # y x h w
    weights = convert_variables(variables).weights
    ours = torch.from_numpy(pooled).permute(0, 3, 1, 2).flatten(1)
    fc1 = torch.from_numpy(weights["roi_heads.box_head.fc1.weight"])
    expected = torch.from_numpy(pooled.reshape(3, -1) @ kernel)
    torch.testing.assert_close(F.linear(ours, fc1), expected, rtol=1e-4, atol=1e-3)
    assert weights["roi_heads.box_predictor.bbox_pred.bias"].tolist() == [2, 1, 4, 3]


def detpro_weights():
    """Random weights under DetPro's names, made from ours by the inverse of each rule."""
    state = network("detpro_vild", device="cpu")
    theirs = {}
    for key, value in state.items():
        if key.endswith(("pixel_mean", "pixel_std", "vocabulary", "classifier.background")):
            continue
        theirs[_detpro_name(key)] = value
    background = state["roi_heads.box_predictor.classifier.background"]
    theirs["roi_head.bg_embedding.weight"] = background[:, None] - 1
    theirs["roi_head.bg_embedding.bias"] = torch.ones(512)
    theirs["roi_head.clip_model.visual.proj"] = torch.zeros(2)
    return state, theirs


def _detpro_name(key):  # noqa: C901  (one rule per part)
    parts = key.split(".")
    norm = "norm" in parts
    last = parts[-1]
    if key.startswith("backbone.bottom_up.stem"):
        return f"backbone.{'bn1' if norm else 'conv1'}.{last}"
    if key.startswith("backbone.bottom_up.res"):
        stage, block, layer = int(parts[2][3:]) - 1, parts[3], parts[4]
        if layer == "shortcut":
            return f"backbone.layer{stage}.{block}.downsample.{int(norm)}.{last}"
        return f"backbone.layer{stage}.{block}.{'bn' if norm else 'conv'}{layer[-1]}.{last}"
    if key.startswith("backbone.fpn_"):
        kind, level = parts[1][4:-1], int(parts[1][-1]) - 2
        convs = {"lateral": "lateral_convs", "output": "fpn_convs"}[kind]
        return f"neck.{convs}.{level}.{'bn' if norm else 'conv'}.{last}"
    if key.startswith("proposal_generator"):
        layer = {"conv": "rpn_conv", "objectness_logits": "rpn_cls", "anchor_deltas": "rpn_reg"}
        return f"rpn_head.{layer[parts[2]]}.{last}"
    if "mask_head" in key:
        if parts[2].startswith("mask_fcn"):
            return f"roi_head.mask_head.convs.{int(parts[2][-1]) - 1}.conv.{last}"
        layer = {"deconv": "upsample", "predictor": "conv_logits"}[parts[2]]
        return f"roi_head.mask_head.{layer}.{last}"
    if "projection" in key:
        suffix = "_for_image" if "image_head" in key else ""
        return f"roi_head.projection{suffix}.{last}"
    if "bbox_pred" in key:
        return f"roi_head.bbox_head.fc_reg.{last}"
    suffix = "_for_image" if "image_head" in key else ""
    layer = parts[3] if suffix else parts[2]
    number = int(layer[-1]) - 1
    if layer.startswith("fc"):
        return f"roi_head.bbox_head.shared_fcs{suffix}.{number}.{last}"
    return f"roi_head.bbox_head.shared_convs{suffix}.{number}.{'bn' if norm else 'conv'}.{last}"


def test_detpro_weights_come_back():
    state, theirs = detpro_weights()
    converted, left_out = convert_weights(theirs)
    assert weights_of(converted) == weights_of(state)
    for key, value in converted.items():
        torch.testing.assert_close(value, state[key])
    assert list(left_out) == ["roi_head.clip_model.visual.proj"]
    with pytest.raises(ValueError, match=r"1 weights have no place here, first neck\.extra"):
        convert_weights({**theirs, "neck.extra": torch.zeros(1)})
    with pytest.raises(ValueError, match="is it a checkpoint of DetPro's ViLD"):
        convert_weights({"a": torch.zeros(1)})


def test_the_tool_writes_what_its_config_reads(tmp_path, capsys):
    state, theirs = detpro_weights()
    torch.save({"state_dict": theirs, "meta": {"epoch": 20}}, tmp_path / "detpro.pth")
    embeddings = np.random.default_rng(0).normal(size=(1203, 512)).astype(np.float16)
    np.save(tmp_path / "prompts.npy", embeddings)
    folder = tmp_path / "out"
    options = ["--embeddings", str(tmp_path / "prompts.npy")]
    main(["detpro", str(tmp_path / "detpro.pth"), str(folder), *options])
    assert "1 x the frozen CLIP" in capsys.readouterr().out
    source = json.loads((folder / "source.json").read_text())
    assert set(source["sha256"]) == {"detpro.pth", "prompts.npy"}
    cfg = load_config(
        "configs/official/detpro_vild.yaml",
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(folder / "model.pth")]
        + ["MODEL.OVD.VOCABULARY", str(folder / "vocabulary.safetensors")],
    )
    model = build_open_vocabulary_model(cfg)
    key = "roi_heads.image_head.trunk.fc1.weight"
    assert torch.equal(model.state_dict()[key], state[key])
    assert model.vocabulary.names[0] == "aerosol_can" and int(model.vocabulary.novel.sum()) == 337


@pytest.mark.parametrize("kind", ["vild-tf", "detpro"])
def test_what_cannot_be_read_is_named(tmp_path, kind):
    path = tmp_path / "file.pth"
    path.write_bytes(b"no weights")
    options = ["--embeddings", str(path)] if kind == "detpro" else []
    with pytest.raises(SystemExit, match=r"file\.pth"):
        main([kind, str(path), str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_other_categories_are_refused(tmp_path):
    with pytest.raises(Exception, match="there are 80 text embeddings, but 1203 categories"):
        write(tmp_path / "out", {}, torch.eye(80), {}, [])
    assert not Path(tmp_path / "out").exists()


def test_a_tensorflow_checkpoint_is_read(tmp_path):
    tensorflow = pytest.importorskip("tensorflow", reason="tensorflow-cpu is an extra")
    from convert_weights import read_tensorflow

    graph = tensorflow.Graph()
    with graph.as_default(), tensorflow.compat.v1.Session() as session:
        tensorflow.compat.v1.get_variable("fpn/p6/bias", initializer=[1.0, 2.0])
        session.run(tensorflow.compat.v1.global_variables_initializer())
        prefix = tmp_path / "model.ckpt-7"
        tensorflow.compat.v1.train.Saver().save(session, str(prefix))
    assert read_tensorflow(prefix)["fpn/p6/bias"].tolist() == [1, 2]
