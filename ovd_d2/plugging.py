"""Makes another project's Detectron2 config one of an open-vocabulary detector."""

from __future__ import annotations

from detectron2.config import CfgNode

from ovd_d2.data.registration import register_data_sets
from ovd_d2.errors import SetupError
from ovd_d2.modeling.open_vocabulary import open_vocabulary_heads, takes_vocabulary
from ovd_d2.vocabulary import configured_vocabulary


def plug(cfg: CfgNode) -> None:
    """Sets what follows from `MODEL.OVD.VOCABULARY`, once a project has merged its config.

    Number of categories and width of the embeddings are the vocabulary's; boxes and masks are
    class-agnostic, for novel names have no weights of their own. Detectron2's standard ROI heads
    become :class:`ovd_d2.modeling.roi_heads.OpenVocabularyROIHeads`; heads that take a vocabulary
    already stay. Data sets of this package that the config names are registered, for loaders of
    the project. The weights, the data and everything else are the project's.

    >>> cfg = get_cfg()
    >>> ovd_d2.add_ovd_config(cfg)
    >>> cfg.merge_from_file("project_with_words.yaml")
    >>> ovd_d2.plug(cfg)

    Raises:
        SetupError: there is no vocabulary, or no open-vocabulary heads take the place of the
            config's; `OVD_DATASETS` could not be registered.
    """
    vocabulary = configured_vocabulary(cfg)
    if vocabulary is None:
        raise SetupError(
            [
                "MODEL.OVD.VOCABULARY is empty: name a vocabulary "
                "(make one with tools/build_vocabulary.py)"
            ]
        )
    if not takes_vocabulary(cfg):
        cfg.MODEL.ROI_HEADS.NAME = _open_heads(cfg)
    cfg.MODEL.OVD.EMBEDDING_DIM = vocabulary.embedding_dim
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(vocabulary)
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    register_data_sets([*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST])


def _open_heads(cfg: CfgNode) -> str:
    name = cfg.MODEL.ROI_HEADS.NAME
    if name != "StandardROIHeads":
        raise SetupError(
            [
                f"MODEL.ROI_HEADS.NAME {name} has a fixed list of categories, and nothing of this "
                "package takes its place: name heads that take a vocabulary "
                f"({', '.join(open_vocabulary_heads())}), or build heads of your own on "
                "ovd_d2.modeling.OpenVocabularyOutputLayers"
            ]
        )
    return "OpenVocabularyROIHeads"
