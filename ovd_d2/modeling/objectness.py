"""What the scores of a proposal generator are."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN

from ovd_d2.errors import SetupError
from ovd_d2.scoring import OBJECTNESS_KINDS


def objectness_kind(cfg: CfgNode) -> str:
    """What `objectness_logits` of the configured proposal generator are: see
    :func:`ovd_d2.scoring.objectness_probabilities`.

    Raises:
        SetupError: `MODEL.OVD.OBJECTNESS` has no such value, or is empty and the generator is none
            of Detectron2's RPNs, so that nothing says which it is.
    """
    kind, name = cfg.MODEL.OVD.OBJECTNESS, cfg.MODEL.PROPOSAL_GENERATOR.NAME
    if kind in OBJECTNESS_KINDS:
        return kind
    choices = " or ".join(f'"{one}"' for one in OBJECTNESS_KINDS)
    if kind:
        raise SetupError([f'MODEL.OVD.OBJECTNESS is "{kind}", expected {choices}'])
    known = name in PROPOSAL_GENERATOR_REGISTRY  # "PrecomputedProposals" is not
    generator = PROPOSAL_GENERATOR_REGISTRY.get(name) if known else None
    if isinstance(generator, type) and issubclass(generator, RPN):
        return "logit"
    raise SetupError(
        [
            f"MODEL.PROPOSAL_GENERATOR.NAME {name} is not a subclass of Detectron2's RPN, so it is "
            f"not known what its objectness_logits are: set MODEL.OVD.OBJECTNESS to {choices} "
            "(CenterNet: probability)"
        ]
    )
