"""Every config key of ovd_d2, its default (the paper's) and what it does."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_ovd_config(cfg: CfgNode) -> None:
    """Adds the keys of open-vocabulary detection to a Detectron2 config.

    >>> from detectron2.config import get_cfg
    >>> cfg = get_cfg()
    >>> add_ovd_config(cfg)
    >>> cfg.merge_from_file("configs/vild_r50.yaml")
    """
    _add_model_keys(cfg)
    _add_head_keys(cfg)
    _add_input_keys(cfg)
    _add_evaluation_keys(cfg)
    # "SGD" (Detectron2's own) or "ADAMW", which converges sooner in short runs from scratch.
    cfg.SOLVER.OPTIMIZER = "SGD"
    # ADAMW: learning rate of the backbone relative to the rest; below 1 for pretrained ones.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0


def _add_model_keys(cfg: CfgNode) -> None:
    ovd = cfg.MODEL.OVD = CfgNode()

    # Which ViLD: "vild_text" (text branch alone), "vild_image" (distillation alone), "vild" (one
    # head learns both), "vild_ensemble" (two heads, their scores mixed at test time).
    # All but vild_text need DISTILLATION.CACHE for training.
    ovd.VARIANT = "vild_text"
    # The category names and their text embeddings: a file made by tools/build_vocabulary.py.
    # Its order is the data set's; ROI_HEADS.NUM_CLASSES must equal its length.
    ovd.VOCABULARY = ""
    # Width of the teacher's embeddings: 512 for CLIP ViT-B/32.
    ovd.EMBEDDING_DIM = 512
    # Divides cosine similarities, in training and at test time.
    ovd.TEMPERATURE = 0.01
    # Logits of novel categories in training: "zero" (as the official code) or "exclude" (-inf).
    ovd.NOVEL_TRAINING_LOGITS = "zero"
    # vild_ensemble at test time: weight of the text branch for base categories (and of the image
    # branch for novel ones).
    ovd.BASE_WEIGHT = 2 / 3
    # At test time scores are p^(1-w) * objectness^w. 0: objectness takes no part (the paper).
    # vild_image has no background class, so it needs some: its configs say 0.5.
    ovd.OBJECTNESS_WEIGHT = 0.0
    # Where test scores come from: "detector", or "clip_crops": the teacher on crops of the
    # detector's proposals (slow; the upper line in the paper's table).
    ovd.CLASSIFY_WITH = "detector"

    # The frozen CLIP: an open_clip architecture with a pretrained tag or a local checkpoint file.
    # Training never loads it; names given at test time and "clip_crops" do.
    ovd.TEACHER = CfgNode()
    ovd.TEACHER.ARCHITECTURE = "ViT-B-32-quickgelu"
    ovd.TEACHER.PRETRAINED = "openai"
    # Prompt family for names given at test time (ovd_d2/clip/prompts.py).
    ovd.TEACHER.PROMPTS = "vild63"

    ovd.DISTILLATION = CfgNode()
    # The proposal-embedding cache of the training set: a folder made by tools/build_cache.py.
    ovd.DISTILLATION.CACHE = ""
    # w of the paper: 0.5 for ResNet-50.
    ovd.DISTILLATION.WEIGHT = 0.5
    # The first K cached proposals of an image take part (they are sorted by objectness).
    ovd.DISTILLATION.PROPOSALS_PER_IMAGE = 300


def _add_head_keys(cfg: CfgNode) -> None:
    # build_timm_fpn_backbone: timm's name of the network, e.g. that of a CLIP image tower.
    cfg.MODEL.BACKBONE.TIMM_ARCHITECTURE = ""
    # Norm after each fc layer of ViLDBoxHead, e.g. "BN" or "SyncBN". "" for none.
    cfg.MODEL.ROI_BOX_HEAD.FC_NORM = ""
    # Norm after each conv of NormRPNHead, e.g. "SyncBN". "" for none.
    cfg.MODEL.RPN.NORM = ""


def _add_input_keys(cfg: CfgNode) -> None:
    # Large-scale jitter: the image is scaled by a random factor of the square SIZE, then cropped
    # or padded to it. Replaces MIN_SIZE_TRAIN / MAX_SIZE_TRAIN where enabled.
    cfg.INPUT.LSJ = CfgNode()
    cfg.INPUT.LSJ.ENABLED = False
    cfg.INPUT.LSJ.MIN_SCALE = 0.1
    cfg.INPUT.LSJ.MAX_SCALE = 2.0
    cfg.INPUT.LSJ.SIZE = 1024


def _add_evaluation_keys(cfg: CfgNode) -> None:
    test = cfg.TEST.OVD = CfgNode()
    # What matches detections to ground truth: "reference" (the packages lvis and pycocotools) or
    # "hotcoco" (the same numbers, faster; tests/evaluation/test_engines.py holds them equal).
    test.ENGINE = "reference"
    # Of LVIS-format data sets: "federated" (LVIS's own, the best 300 detections of an image) or
    # "fixed" (arXiv 2102.01066: the best 10,000 of a category over the data set, no limit an
    # image; set TEST.DETECTIONS_PER_IMAGE to -1 or a large number with it).
    test.PROTOCOL = "federated"
    # Pictures on each sheet of the failure browser (the worst false positives and missed objects
    # of novel categories), written with every evaluation. 0: none is made.
    test.FAILURES = 24
