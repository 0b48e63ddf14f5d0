"""Packaging of ovd_d2. `make setup` installs it in editable mode with pinned requirements.

Every lower bound has a wheel for each Python that is supported, and `make test-lowest` runs the
tests on all of them.
"""

from pathlib import Path

from setuptools import find_packages, setup

# projects/NAME/name is the package ovd_d2.projects.name, with what is in it.
PROJECTS = {
    ".".join(["ovd_d2.projects", *path.parent.parts[2:]]): str(path.parent)
    for path in sorted(Path("projects").glob("*/*/**/__init__.py"))
}

setup(
    name="ovd_d2",
    version="0.2.0",
    description="Open-vocabulary object detection for Detectron2",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_packages(include=["ovd_d2", "ovd_d2.*"]) + list(PROJECTS),
    package_dir=PROJECTS,
    package_data={
        "ovd_d2": [
            "**/*.json",
            "pictograms/weights/*.safetensors",
            "web/page.css",
            "web/picture.js",
        ],
        "ovd_d2.projects.glip": ["*.json", "pictogram_bert/*"],
    },
    # detectron2 is needed too, but has no release on the package index: install it with
    # tools/install_detectron2.py. OpenCV is needed as well, under whichever of its names
    # (opencv-python, opencv-python-headless, a system package) is already there.
    install_requires=[
        # 2.10: before it, torch.load(weights_only=True) can be made to run code
        # (CVE-2025-32434 before 2.6, CVE-2026-24747 before 2.10).
        "torch>=2.10,<3",
        "torchvision>=0.25,<1",
        "open_clip_torch>=3.0,<4",
        "timm>=1.0.21,<2",
        "transformers>=5.0,<6",
        "tokenizers>=0.22.1,<1",
        "safetensors>=0.4.5",
        "xxhash>=3.4.1",
        "orjson>=3.10,<4",
        "numpy>=2.0,<3",
        "pillow>=10.3",
        "matplotlib>=3.9",
        "shapely>=2.0.5",
        "pycocotools>=2.0.8",
        "lvis>=0.5.3,<0.6",
        "hotcoco>=1.3,<2",
        "tabulate>=0.10",
        "tensorboard>=2.16,<3",
        "tqdm>=4.66",
        "pyyaml>=6.0.1",
        "fvcore>=0.1.5.post20221221,<0.1.6",
        "iopath>=0.1.7,<0.1.10",
        # detectron2.model_zoo imports pkg_resources, which setuptools 82 removed.
        "setuptools>=68,<82",
    ],
    extras_require={
        # noun phrases of captions, for GLIP's pseudo labels; no download beside its wheels
        "phrases": ["textblob>=0.19"],
        "opencv": ["opencv-python-headless>=4.10.0.84"],
        "supervision": ["supervision>=0.31.2"],
        # tools/web_demo.py; 6.24: the first whose history of runs can be switched off
        "web": ["gradio>=6.24,<7"],
        # tools/export_onnx.py; 1.19: before it, saving could write outside of its folder
        # (CVE-2025-51480).
        "onnx": ["onnx>=1.19.0,<2", "onnxruntime>=1.20.0,<2"],
        # `make docs`
        "docs": ["sphinx", "furo", "myst-nb", "sphinx-copybutton"],
        "dev": [
            "ruff",
            "mypy",
            "import-linter>=2.1",
            "pytest>=8",
            "pytest-xdist",
            "hypothesis>=6.100",
            "playwright",
            "types-tqdm",
        ],
    },
)
