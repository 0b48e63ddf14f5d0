"""F-ViT's config keys, their defaults (OV-COCO with B/16) and what they do."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_fvit_config(cfg: CfgNode) -> None:
    """Adds the node `MODEL.FVIT`."""
    fvit = cfg.MODEL.setdefault("FVIT", CfgNode())  # keys that are there already stay

    # build_fvit_backbone: the frozen ViT of MODEL.OVD.TEACHER.ARCHITECTURE and its pyramid, of
    # FPN.OUT_CHANNELS and FPN.NORM.
    # Its weights, e.g. a file that CLIPSelf refined. "": TEACHER.PRETRAINED. Neither is read where
    # MODEL.WEIGHTS is set: a detector's checkpoint holds the ViT, too.
    fvit.VIT_WEIGHTS = ""
    # The blocks (from 0) whose output C2, C3, C4 and C5 are made of; (6, 10, 14, 23) for L/14.
    fvit.TAPS = (3, 5, 7, 11)
    # Attention within windows of this many patches a side; 0: global. As the weights were refined.
    fvit.WINDOW_SIZE = 0
    # Blocks (from 0) whose attention is global all the same.
    fvit.GLOBAL_ATTENTION_BLOCKS = ()
    # Side in pixels of the square that images are padded to, right and below; 0: as little as the
    # pyramid needs. Attention sees the padding: as in training.
    fvit.SQUARE_PAD = 0

    # FViTRPN: an anchor below RPN.IOU_THRESHOLDS is positive all the same if no other lies better
    # on its object and their IoU is at least this.
    fvit.RPN_LEAST_IOU = 0.3

    # FViTROIHeads. Of the proposals on an object the best one is that object's, even if it lies
    # better on another (LVIS).
    fvit.BEST_PROPOSAL_IS_THE_OBJECTS = False
    # Weight of regions without object in the classification loss, relative to the others.
    fvit.BACKGROUND_WEIGHT = 0.6
    # What cosine similarities are multiplied by before the text branch's softmax: where the learned
    # factor begins. It takes the place of OVD.TEMPERATURE.
    fvit.LOGIT_SCALE = 50.0
    # Another factor at test time (transfer: 50). 0: the learned one.
    fvit.TEST_LOGIT_SCALE = 0.0
    # Mix the text branch's scores with those of the frozen dense map at the proposals, by
    # OVD.BASE_WEIGHT and OVD.NOVEL_WEIGHT: 1 - alpha and 1 - beta of the paper. Needs a backbone
    # with a dense map.
    fvit.ENSEMBLE = True
    # The dense map's factor of cosine similarities.
    fvit.IMAGE_LOGIT_SCALE = 75.0
