"""A Detectron2 project as there are many: data of its own, a yaml file, DefaultTrainer."""

import os

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.data.datasets import register_coco_instances
from detectron2.engine import (
    DefaultTrainer,
    default_argument_parser,
    default_setup,
    hooks,
    launch,
)
from detectron2.evaluation import COCOEvaluator

SHOP = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "shop")
METADATA = {
    "thing_colors": [(90, 90, 90)] * 80,
}


def register_data():
    for split in ("train", "val"):
        register_coco_instances(f"shop_{split}", METADATA, f"{SHOP}/{split}.json", SHOP)


class Trainer(DefaultTrainer):
    def build_hooks(self):
        return [*super().build_hooks(), hooks.TorchMemoryStats()]

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


def main(args):
    register_data()
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)
    default_setup(cfg, args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
        return Trainer.test(cfg, model)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


if __name__ == "__main__":
    arguments = default_argument_parser().parse_args()
    launch(main, arguments.num_gpus, args=(arguments,))
