"""What GLIP shows on Pictograms (:mod:`ovd_d2.pictograms.showcase`)."""

from __future__ import annotations

from ovd_d2.pictograms.showcase import Method, Ordering, Showcase
from ovd_d2.pictograms.steps import Run, Step, backbone_step, data_step, vocabulary_step


def prepare(run: Run) -> list[Step]:
    """Data, backbone and names, which ViLD has, too."""
    return [data_step(), backbone_step(), vocabulary_step()]


def _trained(name: str, title: str, about: str = "") -> Method:
    return Method(
        f"projects/GLIP/configs/pictograms/{name}.yaml",
        title,
        about,
        needs=lambda run: ("backbone", "vocabulary"),
    )


SHOWCASE = Showcase(
    prepare=prepare,
    methods=(
        _trained("glip_no_fusion", "GLIP without fusion"),
        _trained("glip_detection", "GLIP", "base names alone"),
        _trained("glip_captions", "GLIP + captions", "captions name the novel glyphs, with boxes"),
    ),
    demo=("glip_captions",),
    demo_table=("glip_no_fusion", "glip_detection", "glip_captions"),
    orderings=(  # of the paper's tables 2 to 4
        Ordering(
            "novel AP50: detection alone < + captions",
            "box AP50_novel",
            "glip_detection",
            "<",
            "glip_captions",
        ),
        Ordering(
            "AP50: without fusion < with", "box AP50", "glip_no_fusion", "<", "glip_detection"
        ),
    ),
)
