# vild_online.yaml as a LazyConfig: lazy_vild.py without a cache (docs/online.md).
from detectron2.config import LazyCall as L

from ovd_d2.cache import ProposalStore
from ovd_d2.clip.loading import load_teacher
from ovd_d2.data.passengers import ProposalsToEmbed
from ovd_d2.vild.online_teacher import OnlineTeacher

from .lazy_vild import dataloader, lr_multiplier, model, optimizer, train, vocabulary

proposals = L(ProposalStore)(path="datasets://pictograms_v1/proposals")
dataloader.train.mapper.passengers = [L(ProposalsToEmbed)(store=proposals, per_image=25)]
wrap_loader = L(OnlineTeacher)(
    teacher=L(load_teacher)(
        architecture="Pictogram-RN", pretrained="shipped", device="${train.device}"
    )
)
train.output_dir = "./output/pictograms/lazy_vild_online"
