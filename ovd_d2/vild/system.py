"""ViLD's plug (:mod:`ovd_d2.systems`)."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode

from ovd_d2.cache import EmbeddingCache, ProposalStore
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.data.passengers import CachedProposals, Passenger, ProposalsToEmbed
from ovd_d2.systems import Batches, System
from ovd_d2.vild import checks
from ovd_d2.vild.config import RENAMED_KEYS, add_vild_config
from ovd_d2.vild.online_teacher import OnlineTeacher, online_recipe
from ovd_d2.vild.variants import get_variant

ROI_HEADS = ("ViLDROIHeads", "ViLDCascadeROIHeads")


def is_configured(cfg: CfgNode) -> bool:
    """Whether the heads are ViLD's, in whatever meta-architecture."""
    return cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS


def passengers(cfg: CfgNode) -> Sequence[Passenger]:
    """Stored proposals, with or without embeddings, where the variant distils."""
    if not get_variant(cfg.MODEL.VILD.VARIANT).distils:
        return ()
    distillation = cfg.MODEL.VILD.DISTILLATION
    options = {
        "per_image": distillation.PROPOSALS_PER_IMAGE,
        "except_sets": distillation.EXCEPT_DATASETS,
    }
    if distillation.ONLINE.PROPOSALS:
        return (ProposalsToEmbed(ProposalStore(distillation.ONLINE.PROPOSALS), **options),)
    return (CachedProposals(EmbeddingCache(distillation.CACHE), **options),)


def wrap_loader(cfg: CfgNode, loader: Batches) -> Batches:
    """The teacher embeds inside training where that is configured."""
    online = cfg.MODEL.VILD.DISTILLATION.ONLINE
    if not (online.PROPOSALS and checks.distils(cfg)):
        return loader
    teacher = configured_teacher(cfg, device=cfg.MODEL.DEVICE)
    return OnlineTeacher(teacher, batch_size=online.BATCH_SIZE, recipe=online_recipe(cfg))(loader)


SYSTEM = System(
    name="ViLD",
    node="MODEL.VILD",
    is_configured=is_configured,
    add_config=add_vild_config,
    renamed_keys=RENAMED_KEYS,
    key_problems=checks.key_problems,
    problems=checks.problems,
    lazy_problems=checks.lazy_problems,
    idle_keys=checks.idle_keys,
    passengers=passengers,
    wrap_loader=wrap_loader,
    golden="ovd_d2.vild.golden",
    showcase="ovd_d2.vild.showcase",
)
