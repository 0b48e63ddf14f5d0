"""The config keys that all systems share, their defaults and what they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from ovd_d2.systems import systems

# Old name -> new name of a key or of a node; systems have their own (`System.renamed_keys`).
RENAMED_KEYS = {
    "MODEL.VIT": "MODEL.OVD.VIT",
    "MODEL.BACKBONE.TIMM_ARCHITECTURE": "MODEL.OVD.TIMM_ARCHITECTURE",
    "SOLVER.BACKBONE_MULTIPLIER": "SOLVER.LR_MULTIPLIERS",
}


def add_ovd_config(cfg: CfgNode) -> None:
    """Adds the keys of open-vocabulary detection to a Detectron2 config, every system's included.

    To be called before values are merged, before or after other projects' functions of this kind:
    outside of `MODEL.OVD` and `TEST.OVD` a key that is there already keeps its value.

    >>> from detectron2.config import get_cfg
    >>> cfg = get_cfg()
    >>> add_ovd_config(cfg)
    >>> cfg.merge_from_file("configs/vild_r50.yaml")
    """
    _add_model_keys(cfg)
    _add_batch_norm_keys(cfg.MODEL.OVD)
    _add_head_keys(cfg)
    _add_backbone_keys(cfg.MODEL.OVD)
    _add_input_keys(cfg)
    _add_evaluation_keys(cfg)
    # Drop the annotations of novel categories from the training set; False for the supervised
    # upper line alone, which may see them.
    _add(cfg.DATALOADER, "FILTER_NOVEL_ANNOTATIONS", True)
    # With DATALOADER.SAMPLER_TRAIN "WeightedTrainingSampler": how often the images of a training
    # set are seen per epoch, [["lvis_v1_train", 2.0], ...]; 1 where a set is not named.
    _add(cfg.DATASETS, "TRAIN_REPEAT_FACTOR", [])
    # Data sets of one's own, in the form of OVD_DATASETS: a yaml file, whose sets this config can
    # name. "": none beside those of OVD_DATASETS.
    _add(cfg.DATASETS, "OWN", "")
    _add_solver_keys(cfg)
    for system in systems():
        system.add_config(cfg)
    _refuse_old_names(cfg)


def renamed_keys() -> dict[str, str]:
    """Old name -> new name of every key or node that an older version had under another name."""
    renamed = dict(RENAMED_KEYS)
    for system in systems():
        renamed |= system.renamed_keys
    return renamed


def _add(node: CfgNode, key: str, default: Any) -> Any:
    """Adds a key where no other project has added one of this name; returns its value."""
    if key not in node:
        node[key] = default
    return node[key]


def _refuse_old_names(cfg: CfgNode) -> None:
    """Makes merging a yaml file with an old key an error with the new name.

    Where another project has a key of an old name, it is that project's: merging it is no error.
    """
    for old, new in renamed_keys().items():
        if not _has(cfg, old):
            cfg.register_renamed_key(old, new)


def _has(cfg: CfgNode, key: str) -> bool:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return False
        node = node[part]
    return True


def _add_model_keys(cfg: CfgNode) -> None:
    ovd = _add(cfg.MODEL, "OVD", CfgNode())

    # The category names and their text embeddings: a file made by tools/build_vocabulary.py.
    # It has the names of all training sets, whose categories are found by them;
    # ROI_HEADS.NUM_CLASSES must equal its length.
    ovd.VOCABULARY = ""
    # Width of the teacher's embeddings: 512 for CLIP ViT-B/32.
    ovd.EMBEDDING_DIM = 512
    # Divides cosine similarities, in training and at test time.
    ovd.TEMPERATURE = 0.01
    # Another temperature at test time (DetPro: 0.007). 0: the same.
    ovd.TEST_TEMPERATURE = 0.0
    # What competes with the names: a "learned" embedding (the paper), or "text", the frozen
    # embedding of the word "background" that vocabularies carry.
    ovd.BACKGROUND = "learned"
    # Logits of novel categories in training: "zero" (as the official code) or "exclude" (-inf).
    ovd.NOVEL_TRAINING_LOGITS = "zero"
    # Ensemble of a text and an image branch at test time: weights of the text branch for base and
    # for novel categories, the rest is the image branch's. Equal: one weight for all (transfer to
    # other data sets).
    ovd.BASE_WEIGHT = 2 / 3
    ovd.NOVEL_WEIGHT = 1 / 3
    # At test time scores are p^(1-w) * objectness^w. 0: objectness takes no part (the paper).
    # ViLD-image has no background class, so it needs some: its configs say 0.5.
    ovd.OBJECTNESS_WEIGHT = 0.0
    # What the proposal generator's `objectness_logits` are: "logit" (Detectron2's RPN) or
    # "probability" (CenterNet). "": by the generator's class; one that is no RPN must be told.
    ovd.OBJECTNESS = ""
    # Where test scores come from: "detector"; "clip_crops": the teacher on crops of the detector's
    # proposals (slow; the upper line in the paper's table); "text_and_clip_crops": the ensemble of
    # the detector's text branch and the teacher on crops (ViLD-text + CLIP).
    ovd.CLASSIFY_WITH = "detector"
    # Run the backbone through torch.compile, in training and at test time (docs/results.md, Speed).
    # The first images take a minute or two, and so does every further shape until it gives up
    # compiling: for images of one size. Needs a C++ compiler (on a GPU, Triton, too).
    ovd.COMPILE_BACKBONE = False
    # Parameters whose names begin with one of these do not train, and norms below keep their
    # statistics: ["backbone.bottom_up."], say. A beginning that no parameter has is an error.
    ovd.FREEZE = ()

    # The frozen CLIP: an open_clip architecture with a pretrained tag or a local checkpoint file.
    # Names given at test time and "clip_crops" load it; training, where it embeds online.
    ovd.TEACHER = CfgNode()
    ovd.TEACHER.ARCHITECTURE = "ViT-B-32-quickgelu"
    ovd.TEACHER.PRETRAINED = "openai"
    # Prompt family for names given at test time (ovd_d2/clip/prompts.py).
    ovd.TEACHER.PROMPTS = "vild63"


def _add_batch_norm_keys(ovd: CfgNode) -> None:
    # Of every batch norm that is not frozen; the defaults are PyTorch's, Detectron2 has no keys for
    # them. MOMENTUM is the share of a batch in the running statistics (TensorFlow: 1 minus it).
    ovd.BATCH_NORM = CfgNode()
    ovd.BATCH_NORM.MOMENTUM = 0.1
    ovd.BATCH_NORM.EPS = 1e-5
    # Whether the running variance is the batch's, as TensorFlow's, or n / (n - 1) of it.
    ovd.BATCH_NORM.BIASED_VARIANCE = False


def _add_solver_keys(cfg: CfgNode) -> None:
    # "SGD" (Detectron2's own) or "ADAMW", which converges sooner in short runs from scratch; upper
    # or lower case.
    _add(cfg.SOLVER, "OPTIMIZER", "SGD")
    # Of AdamW alone.
    _add(cfg.SOLVER, "BETAS", (0.9, 0.999))
    _add(cfg.SOLVER, "EPS", 1e-8)
    # Learning rate of parameters by the beginning of their names, relative to the rest:
    # [["backbone.bottom_up.", 0.3], ["backbone.bottom_up.res5.", 1.0]]. The longest beginning
    # counts. One that no parameter has is an error.
    _add(cfg.SOLVER, "LR_MULTIPLIERS", ())
    # Parameters without weight decay, by the last part of their names: a ViT's table of positions;
    # "bias" for all biases. Norms have WEIGHT_DECAY_NORM.
    _add(cfg.SOLVER, "NO_DECAY", ("pos_embed",))
    # What BIAS_LR_FACTOR is of, by the last part of the names.
    _add(cfg.SOLVER, "BIAS_NAMES", ("bias",))
    # Where the weight decay, too, is multiplied by GAMMA: at this part of each of STEPS, as 0.667.
    # 0: it stays.
    _add(cfg.SOLVER, "WEIGHT_DECAY_STEPS", 0.0)
    # Exponential moving average of the weights, which is then what is evaluated in training and
    # written as model_ema.pth at its end. Checkpoints hold both; model_final.pth has the raw ones.
    average = _add(cfg.SOLVER, "EMA", CfgNode())
    _add(average, "ENABLED", False)
    # Share of the average that stays in each step: it looks back over about 1 / (1 - DECAY) steps.
    _add(average, "DECAY", 0.9998)
    # By the metric of TEST.OVD.BEST_CHECKPOINT: all rates times FACTOR after more than PATIENCE
    # evaluations in a row without a new best, down to FLOOR; the training ends after STOP of them.
    # FACTOR 1 and STOP 0: off.
    plateau = _add(cfg.SOLVER, "PLATEAU", CfgNode())
    _add(plateau, "FACTOR", 1.0)
    _add(plateau, "PATIENCE", 3)
    _add(plateau, "FLOOR", 1e-6)
    _add(plateau, "STOP", 0)


def _add_head_keys(cfg: CfgNode) -> None:
    # Norm after each fc layer of ViLDBoxHead, e.g. "BN" or "SyncBN". "" for none.
    _add(cfg.MODEL.ROI_BOX_HEAD, "FC_NORM", "")
    # Norm after each conv of NormRPNHead, e.g. "SyncBN". "" for none.
    _add(cfg.MODEL.RPN, "NORM", "")


def _add_backbone_keys(ovd: CfgNode) -> None:
    # build_ovd_timm_fpn_backbone, build_ovd_timm_p7_fpn_backbone: timm's name of the network, e.g.
    # that of a CLIP image tower.
    ovd.TIMM_ARCHITECTURE = ""

    # build_ovd_vit_fpn_backbone; the defaults are ViTDet's ViT-B.
    vit = ovd.VIT = CfgNode()
    # Side of the training image in pixels: relative positions have a table of this size, which
    # other sizes interpolate.
    vit.IMG_SIZE = 1024
    vit.PATCH_SIZE = 16
    vit.EMBED_DIM = 768
    vit.DEPTH = 12
    vit.NUM_HEADS = 12
    # Stochastic depth: the last block is left out of a step with this probability.
    vit.DROP_PATH_RATE = 0.1
    # Learned relative positions in every attention; absolute ones are always there.
    vit.USE_REL_POS = True
    # Attention stays within windows of this many patches a side; 0 for none: all blocks global.
    vit.WINDOW_SIZE = 14
    # The blocks that see the whole image all the same.
    vit.GLOBAL_ATTENTION_BLOCKS = (2, 5, 8, 11)
    # Image side in the pretraining of the weights: size of the table of absolute positions.
    vit.PRETRAIN_IMG_SIZE = 224
    # The pyramid's maps relative to the ViT's one: strides are PATCH_SIZE over these. The last
    # must have stride 32 ("p5"), which is pooled once more.
    vit.SCALE_FACTORS = (4.0, 2.0, 1.0, 0.5)


def _add_input_keys(cfg: CfgNode) -> None:
    # Large-scale jitter: the image is scaled by a random factor of the square SIZE, then cropped
    # or padded to it. Replaces MIN_SIZE_TRAIN / MAX_SIZE_TRAIN where enabled.
    jitter = _add(cfg.INPUT, "LSJ", CfgNode())
    _add(jitter, "ENABLED", False)
    _add(jitter, "MIN_SCALE", 0.1)
    _add(jitter, "MAX_SCALE", 2.0)
    _add(jitter, "SIZE", 1024)
    # Flip before scaling and cropping instead of after.
    _add(jitter, "FLIP_FIRST", False)
    # Pad to the square in the mapper, with grey; False: leave it to the model, whose padding is
    # the mean (build_vild_resnet_fpn_backbone with MODEL.VILD.SQUARE_PAD).
    _add(jitter, "PAD", True)
    # How images are resized, in training and at test time: "pillow" (Detectron2's bilinear),
    # "pillow_bicubic", or without antialiasing "opencv" (bilinear, as mmdet) and "tensorflow"
    # (TensorFlow 1's bilinear: official ViLD weights want it).
    _add(cfg.INPUT, "RESIZE", "pillow")
    # Of a size that follows from the shortest edge: "rounded" (Detectron2's) or "truncated"
    # (maskrcnn-benchmark's, which GLIP was trained with); they differ by a pixel.
    _add(cfg.INPUT, "SIZE_RULE", "rounded")


def _add_evaluation_keys(cfg: CfgNode) -> None:
    test = _add(cfg.TEST, "OVD", CfgNode())
    # What matches detections to ground truth: "reference" (the packages lvis and pycocotools) or
    # "hotcoco" (the same numbers, faster; tests/evaluation/test_engines.py holds them equal).
    test.ENGINE = "reference"
    # Of LVIS-format data sets: "federated" (LVIS's own, the best 300 detections of an image) or
    # "fixed" (arXiv 2102.01066: the best 10,000 of a category over the data set; set
    # TEST.DETECTIONS_PER_IMAGE to 1000 with it, see docs/evaluation.md).
    test.PROTOCOL = "federated"
    # Pictures on each sheet of the failure browser (the worst false positives and missed objects
    # of novel categories), written with every evaluation. 0: none is made.
    test.FAILURES = 24
    # Also compute the training losses (val_loss/...) over DATASETS.TEST's base annotations with
    # every evaluation of a training. It says when the base categories are overfitted.
    test.VALIDATION_LOSS = False
    # Keep the weights of the evaluation with the highest value of this metric as model_best.pth,
    # e.g. "bbox/AP50_base" or, the lowest, "val_loss/total_loss"; with several test sets
    # "NAME/bbox/AP50_base". Selecting by novel AP is peeking (docs/training.md). "": off.
    test.BEST_CHECKPOINT = ""
