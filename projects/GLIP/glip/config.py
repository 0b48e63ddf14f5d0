"""GLIP's config keys, their defaults (GLIP-T) and what they do."""

from __future__ import annotations

from detectron2.config import CfgNode


def add_glip_config(cfg: CfgNode) -> None:
    """Adds the node `MODEL.GLIP`."""
    glip = cfg.MODEL.setdefault("GLIP", CfgNode())  # keys that are there already stay
    _add_encoder_keys(glip)
    _add_tower_keys(glip)
    _add_training_keys(glip)
    _add_test_keys(glip)
    _add_prompt_keys(glip)


def _add_encoder_keys(glip: CfgNode) -> None:
    # build_glip_swin_fpn_backbone: Detectron2's Swin with P3 to P7 of FPN.OUT_CHANNELS.
    swin = glip.SWIN = CfgNode()
    swin.EMBED_DIM = 96
    swin.DEPTHS = (2, 2, 6, 2)
    swin.NUM_HEADS = (3, 6, 12, 24)
    swin.WINDOW_SIZE = 7
    swin.DROP_PATH_RATE = 0.2
    # DropBlock on the maps of which P3 and P4 are made, in training.
    glip.FPN_DROP_BLOCK = 0.3

    # The text encoder, a BERT of these sizes; the language layers of the tower have the same.
    bert = glip.BERT = CfgNode()
    # Its weights: a folder in the layout of `transformers`, or a name of the Hugging Face hub. "":
    # random. Not read where MODEL.WEIGHTS brings a text encoder, as a whole detector's does.
    bert.PRETRAINED = "bert-base-uncased"
    bert.WIDTH = 768
    bert.LAYERS = 12
    bert.HEADS = 12
    bert.HIDDEN = 3072
    bert.VOCABULARY = 30522
    bert.POSITIONS = 512

    # Cuts names and captions into tokens: a vocab.txt, a tokenizer.json, a folder with one of them,
    # or a name of the Hugging Face hub.
    glip.TOKENIZER = "bert-base-uncased"


def _add_tower_keys(glip: CfgNode) -> None:
    # Levels of the backbone's pyramid, finest first; the side of an anchor is 8 strides.
    glip.IN_FEATURES = ("p3", "p4", "p5", "p6", "p7")
    # The tower: so many blocks of fusion, language layer and DyConv.
    glip.BLOCKS = 6
    # False: DyConv alone (variant A); text and image meet in the last dot product only.
    glip.FUSION = True
    glip.FUSION_DIM = 2048
    glip.FUSION_HEADS = 8
    # Where the logarithm begins of what dot products of image and text are divided by; learned.
    glip.LOG_SCALE = 0.0
    # A block's part of the image: DyConv (deformable, over three levels, with attention and dynamic
    # ReLU). False: ConvNeXt's block on each level by itself, for small images and little data.
    glip.DYNAMIC_CONV = True
    # DyConv convolves the next coarser level with offsets of this one, which are too many.
    # "resized": they are resized; "flat": read as they lie in memory, as official weights need.
    glip.OFFSETS_ACROSS_LEVELS = "resized"


def _add_training_keys(glip: CfgNode) -> None:
    # Focal loss of the tokens: weight of pairs of a location and a token that belong together (1 -
    # alpha: of the others), and its exponent.
    glip.FOCAL_LOSS_ALPHA = 0.25
    glip.FOCAL_LOSS_GAMMA = 2.0
    # Weight of the loss of boxes beside those of tokens and of centerness.
    glip.BOX_WEIGHT = 2.0
    # Of BERT, fusion and language layers, in training.
    glip.DROPOUT = 0.1
    # Keep no activations of Swin's blocks, BERT's layers and the tower's parts, compute them again.
    glip.GRADIENT_CHECKPOINTING = False
    # What trains: "full"; "linear": the projection of text, boxes, centerness and the biases and
    # scale of the logits; "prompt": an offset to a caption's embeddings, which a checkpoint of this
    # mode brings to its evaluation, too.
    glip.TUNING = "full"


def _add_test_keys(glip: CfgNode) -> None:
    # The least score of a label at a location, before centerness takes part; the best
    # so many of each level; IoU above which the worse of two boxes of one label goes.
    # TEST.DETECTIONS_PER_IMAGE is the number that is left.
    glip.SCORE_THRESH = 0.05
    glip.PRE_NMS_TOPK = 1000
    glip.NMS_THRESH = 0.6
    # A label's score from those of its tokens: "mean", "max", "power" (geometric mean), "one_hot".
    glip.AGGREGATION = "mean"
    # Many names are many captions: so many of them go through the tower side by side. More needs
    # more memory: at 800 x 1333 about 1 GB per full caption.
    glip.CAPTIONS_PER_PASS = 4
    # Names of a vocabulary per caption at test time. 0: as many as 256 tokens hold; the public code
    # has 40 on LVIS, and all of other data sets.
    glip.NAMES_PER_CAPTION = 0


def _add_prompt_keys(glip: CfgNode) -> None:
    # How training images of detection sets are asked for the names of their categories. "sampled":
    # what an image shows, and up to NEGATIVES other names; positives that do not fit into one
    # prompt are split over several. "all": every name in every prompt. "public": sampled as in the
    # public code, which drops positives and asks for "background".
    prompts = glip.PROMPTS = CfgNode()
    prompts.NAMES = "sampled"
    prompts.NEGATIVES = 85
    # Of "all": the names in random order. False: in that of the data set.
    prompts.SHUFFLE = True
    # What is asked for in place of the name of a category, in training and at test time: rows
    # [category, prefix, name, suffix]; blanks and all, ["hand", "", "hand", " of a person"]. Boxes
    # are of the name alone.
    prompts.PHRASES = ()
    # Grounding sets of DATASETS.TRAIN whose captions stand among captions of other images, of which
    # nothing must be found.
    prompts.NEGATIVE_CAPTIONS = ()
    # Folder of Flickr30k Entities (Annotations, Sentences), by which recall of phrases is measured
    # for each type of phrase. "": by the annotation file alone.
    glip.ENTITIES = ""
