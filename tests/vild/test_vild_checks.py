from ovd_d2.engine.checks import config_problems
from ovd_d2.engine.config_keys import idle_key_notices
from ovd_d2.engine.run import load_config


def config(*opts):
    return load_config("configs/vild_r50.yaml", ["MODEL.DEVICE", "cpu", *opts])


def test_the_full_recipe_is_sound():
    assert list(config_problems(config(), training=False)) == []
    assert idle_key_notices(config()) == []


def test_images_larger_than_the_square_they_are_padded_to():
    (problem,) = config_problems(config("INPUT.MAX_SIZE_TEST", "1333"), training=False)
    assert "SQUARE_PAD is 1024, but test images have up to 1333 pixels" in problem
    unpadded = config("INPUT.MAX_SIZE_TEST", "1333", "MODEL.VILD.SQUARE_PAD", "0")
    assert list(config_problems(unpadded, training=False)) == []


def test_an_unknown_way_of_resizing():
    (problem,) = config_problems(config("INPUT.RESIZE", "nearest"), training=False)
    assert (
        problem
        == "INPUT.RESIZE: 'nearest' is not one of pillow, tensorflow, opencv, pillow_bicubic"
    )


def test_options_of_parts_that_are_not_there_are_noted():
    opts = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    opts += ("MODEL.ROI_MASK_HEAD.NAME", "ViLDMaskHead")
    opts += ("MODEL.ROI_HEADS.NAME", "ViLDCascadeROIHeads")
    notices = "\n".join(idle_key_notices(config(*opts)))
    for key in ("SQUARE_PAD", "SOFT_MASK_TARGETS", "INCLUSIVE_BOXES", "BOX_LOSS_OVER_POSITIVES"):
        assert f"MODEL.VILD.{key}" in notices
