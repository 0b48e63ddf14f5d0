"""Many small detection sets in a folder (ODinW, RF100-VL): zero-shot and few-shot evaluation."""

from ovd_d2.projects.glip.folders.evaluation import Plan, evaluate_folders
from ovd_d2.projects.glip.folders.layout import FolderSet, find_sets, select_sets
from ovd_d2.projects.glip.folders.prompt_file import read_prompts
from ovd_d2.projects.glip.folders.report import folders_table, write_report

__all__ = [
    "FolderSet",
    "Plan",
    "evaluate_folders",
    "find_sets",
    "folders_table",
    "read_prompts",
    "select_sets",
    "write_report",
]
