# vild_online.yaml as a LazyConfig: lazy_vild.py without a cache (docs/online.md).
from detectron2.config import LazyCall as L

from ovd_d2.cache import ProposalStore
from ovd_d2.clip import CLIPTeacher

from .lazy_vild import dataloader, lr_multiplier, model, optimizer, train, vocabulary

dataloader.train.mapper.cache = None
dataloader.train.mapper.proposals = L(ProposalStore)(path="datasets://pictograms_v1/proposals")
teacher = L(CLIPTeacher.from_open_clip)(
    architecture="Pictogram-RN", pretrained="shipped", device="${train.device}"
)
train.output_dir = "./output/pictograms/lazy_vild_online"
