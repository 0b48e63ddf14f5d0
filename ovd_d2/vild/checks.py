"""What a run of ViLD needs beyond what any open-vocabulary detector does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from ovd_d2.cache import CacheError, EmbeddingCache, ProposalStore
from ovd_d2.clip.crops import RESIZE_CHOICES
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.data.passengers import CachedProposals, Passenger, ProposalsToEmbed
from ovd_d2.errors import SetupError
from ovd_d2.systems import IdleKeys, SetupContext
from ovd_d2.vild.online_teacher import OnlineTeacher
from ovd_d2.vild.roi_heads import ViLDROIHeads
from ovd_d2.vild.variants import VARIANTS

KEYS = "MODEL.VILD.DISTILLATION"

_NO_CACHE = (
    "dataloader.train.mapper has no passengers, but this variant distils: add "
    'passengers=[L(CachedProposals)(store=L(EmbeddingCache)(path="..."), per_image=300)]'
)


def key_problems(cfg: CfgNode) -> Iterable[str]:
    """Values that cannot be meant."""
    if cfg.MODEL.VILD.VARIANT not in VARIANTS:
        yield (
            f"MODEL.VILD.VARIANT: '{cfg.MODEL.VILD.VARIANT}' is not one of {', '.join(VARIANTS)}"
        )


def distils(cfg: CfgNode) -> bool:
    """Whether the configured variant learns from the teacher; an unknown one does not."""
    variant = VARIANTS.get(cfg.MODEL.VILD.VARIANT)
    return variant is not None and variant.distils


def problems(cfg: CfgNode, context: SetupContext) -> Iterable[str]:
    """The teacher's embeddings come from a cache or from the teacher: one of them, and sound."""
    if not (context.training and distils(cfg)):
        return
    distillation = cfg.MODEL.VILD.DISTILLATION
    if not distillation.CACHE and not distillation.ONLINE.PROPOSALS:
        yield (
            f"{KEYS}.CACHE is empty: make one with tools/cache.py build, or name the proposals as "
            f"{KEYS}.ONLINE.PROPOSALS to train without a cache"
        )
    if distillation.CACHE and distillation.ONLINE.PROPOSALS:
        yield (
            f"{KEYS}.CACHE is '{distillation.CACHE}' and {KEYS}.ONLINE.PROPOSALS "
            f"'{distillation.ONLINE.PROPOSALS}': empty the one that is not meant"
        )
    if distillation.CACHE:
        yield from _cache_problems(cfg, context)
    if distillation.ONLINE.PROPOSALS:
        yield from _online_problems(cfg, context)


def _cache_problems(cfg: CfgNode, context: SetupContext) -> Iterable[str]:
    distillation = cfg.MODEL.VILD.DISTILLATION
    try:
        cache = EmbeddingCache(distillation.CACHE)
    except (OSError, CacheError) as error:
        yield f"{KEYS}.CACHE: {error}"
        return
    passenger = CachedProposals(cache, per_image=distillation.PROPOSALS_PER_IMAGE)
    yield from passenger.problems(context)


def _online_problems(cfg: CfgNode, context: SetupContext) -> Iterable[str]:
    online, key = cfg.MODEL.VILD.DISTILLATION.ONLINE, f"{KEYS}.ONLINE"
    if online.RESIZE not in RESIZE_CHOICES:
        yield f"{key}.RESIZE: '{online.RESIZE}' is not one of {', '.join(RESIZE_CHOICES)}"
    if online.BATCH_SIZE < 1:
        yield f"{key}.BATCH_SIZE: {online.BATCH_SIZE} crops in one pass, expected at least 1"
    try:
        yield from OnlineTeacher(configured_teacher(cfg, device="cpu")).problems(context)
    except SetupError as error:
        yield from (f"{problem} ({key} needs it)" for problem in error.problems)
    try:
        store = ProposalStore(online.PROPOSALS)
    except (OSError, CacheError) as error:
        yield f"{key}.PROPOSALS: {error}"
        return
    yield from ProposalsToEmbed(store, per_image=1).problems(context)


def lazy_problems(cfg: DictConfig, passengers: Sequence[Passenger]) -> Iterable[str]:
    """Heads that distil, and a mapper that brings nothing to distil from."""
    heads = cfg.model.get("roi_heads", {})
    if "variant" not in heads or passengers:
        return
    target = heads.get("_target_")
    target = locate(target) if isinstance(target, str) else target
    if isinstance(target, type) and issubclass(target, ViLDROIHeads):
        yield from (_NO_CACHE,) if instantiate(heads.variant).distils else ()


def idle_keys(cfg: CfgNode) -> Iterable[IdleKeys]:
    """Keys that the variant does not read."""
    vild = cfg.MODEL.VILD
    variant = VARIANTS.get(vild.VARIANT)
    if variant is not None and not variant.distils:
        yield (
            tuple(
                f"{KEYS}.{key}"
                for key in ("CACHE", "WEIGHT", "PROPOSALS_PER_IMAGE", "ONLINE.PROPOSALS")
            ),
            f"MODEL.VILD.VARIANT {vild.VARIANT} does not distil",
        )
    if not vild.DISTILLATION.ONLINE.PROPOSALS:
        yield (
            (f"{KEYS}.ONLINE.RESIZE", f"{KEYS}.ONLINE.BATCH_SIZE"),
            f"{KEYS}.ONLINE.PROPOSALS is empty",
        )
    ensembles = cfg.MODEL.OVD.CLASSIFY_WITH == "text_and_clip_crops" or (
        variant is not None and variant.scores == "ensemble"
    )
    if not ensembles:
        yield (
            ("MODEL.OVD.BASE_WEIGHT", "MODEL.OVD.NOVEL_WEIGHT"),
            f"MODEL.VILD.VARIANT {vild.VARIANT} mixes no scores",
        )
