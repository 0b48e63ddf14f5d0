"""What a run of ViLD needs beyond what any open-vocabulary detector does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from detectron2.config import CfgNode, instantiate
from detectron2.utils.registry import locate
from omegaconf import DictConfig

from ovd_d2.cache import CacheError, EmbeddingCache, ProposalStore
from ovd_d2.clip.crops import VILD_RECIPE
from ovd_d2.clip.loading import configured_teacher
from ovd_d2.clip.recipe import Recipe
from ovd_d2.data.passengers import CachedProposals, Passenger, ProposalsToEmbed
from ovd_d2.errors import SetupError
from ovd_d2.systems import IdleKeys, SetupContext
from ovd_d2.vild.online_teacher import OnlineTeacher, online_recipe
from ovd_d2.vild.roi_heads import ViLDROIHeads
from ovd_d2.vild.variants import VARIANTS

KEYS = "MODEL.VILD.DISTILLATION"
FPN_BACKBONE = "build_vild_resnet_fpn_backbone"

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
    square, longest = cfg.MODEL.VILD.SQUARE_PAD, cfg.INPUT.MAX_SIZE_TEST
    if 0 < square < longest and cfg.MODEL.BACKBONE.NAME == FPN_BACKBONE:
        yield (
            f"MODEL.VILD.SQUARE_PAD is {square}, but test images have up to {longest} pixels "
            "(INPUT.MAX_SIZE_TEST): pad to at least that, or 0 for as little as possible"
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
    if {*cfg.DATASETS.TRAIN} <= {*distillation.EXCEPT_DATASETS}:
        yield (
            f"{KEYS}.EXCEPT_DATASETS names every set of DATASETS.TRAIN, which leaves nothing to "
            "distil from: leave one out, or train MODEL.VILD.VARIANT vild_text"
        )
    if unknown := sorted({*distillation.EXCEPT_DATASETS} - {*cfg.DATASETS.TRAIN}):
        yield (
            f"{KEYS}.EXCEPT_DATASETS names '{unknown[0]}', which is not in DATASETS.TRAIN "
            f"{tuple(cfg.DATASETS.TRAIN)}"
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
    options = {"per_image": 1, "except_sets": distillation.EXCEPT_DATASETS}
    yield from CachedProposals(cache, **options).problems(context)


def _online_problems(cfg: CfgNode, context: SetupContext) -> Iterable[str]:
    online, key = cfg.MODEL.VILD.DISTILLATION.ONLINE, f"{KEYS}.ONLINE"
    recipe: Recipe = VILD_RECIPE
    try:
        recipe = online_recipe(cfg)
    except ValueError as error:
        option = {"crops": "RESIZE", "dense": "DENSE"}.get(online.TEACHER, "TEACHER")
        yield f"{key}.{option}: {error}"
    if online.BATCH_SIZE < 1:
        yield f"{key}.BATCH_SIZE: {online.BATCH_SIZE} crops in one pass, expected at least 1"
    try:
        teacher = configured_teacher(cfg, device="cpu")
        yield from OnlineTeacher(teacher, recipe=recipe).problems(context)
    except SetupError as error:
        yield from (f"{problem} ({key} needs it)" for problem in error.problems)
    try:
        store = ProposalStore(online.PROPOSALS)
    except (OSError, CacheError) as error:
        yield f"{key}.PROPOSALS: {error}"
        return
    except_sets = cfg.MODEL.VILD.DISTILLATION.EXCEPT_DATASETS
    yield from ProposalsToEmbed(store, per_image=1, except_sets=except_sets).problems(context)


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
                for key in (
                    *("CACHE", "EXCEPT_DATASETS", "WEIGHT", "PROPOSALS_PER_IMAGE"),
                    "ONLINE.PROPOSALS",
                )
            ),
            f"MODEL.VILD.VARIANT {vild.VARIANT} does not distil",
        )
    yield from _idle_online(vild.DISTILLATION.ONLINE)
    yield from _idle_parts(cfg)
    ensembles = cfg.MODEL.OVD.CLASSIFY_WITH == "text_and_clip_crops" or (
        variant is not None and variant.scores == "ensemble"
    )
    if not ensembles:
        yield (
            ("MODEL.OVD.BASE_WEIGHT", "MODEL.OVD.NOVEL_WEIGHT"),
            f"MODEL.VILD.VARIANT {vild.VARIANT} mixes no scores",
        )


def _idle_online(online: CfgNode) -> Iterable[IdleKeys]:
    """Options of a teacher that is not asked, or not so."""
    crops = ("RESIZE", "BATCH_SIZE")
    dense = tuple(f"DENSE.{key}" for key in online.DENSE)
    if not online.PROPOSALS:
        idle, reason = ("TEACHER", *crops, *dense), "PROPOSALS is empty"
    else:
        idle = crops if online.TEACHER == "dense" else dense
        reason = f"TEACHER is {online.TEACHER}"
    yield tuple(f"{KEYS}.ONLINE.{key}" for key in idle), f"{KEYS}.ONLINE.{reason}"


def _idle_parts(cfg: CfgNode) -> Iterable[IdleKeys]:
    """Options of the official network's parts where these parts are not."""
    if cfg.MODEL.BACKBONE.NAME != FPN_BACKBONE:
        yield ("MODEL.VILD.SQUARE_PAD",), f"MODEL.BACKBONE.NAME is {cfg.MODEL.BACKBONE.NAME}"
    if cfg.MODEL.ROI_MASK_HEAD.NAME != "LateNormMaskHead":
        yield (
            ("MODEL.VILD.SOFT_MASK_TARGETS",),
            f"MODEL.ROI_MASK_HEAD.NAME is {cfg.MODEL.ROI_MASK_HEAD.NAME}, not LateNormMaskHead",
        )
    if cfg.MODEL.ROI_HEADS.NAME == "ViLDCascadeROIHeads":
        yield (
            ("MODEL.VILD.INCLUSIVE_BOXES", "MODEL.VILD.BOX_LOSS_OVER_POSITIVES"),
            "the stages of a cascade have Detectron2's boxes and box loss",
        )
