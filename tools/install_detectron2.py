"""Install detectron2, which has no release on the package index.

Ways, in the order tried:
  keep    detectron2 can already be imported: nothing is changed
  github  build the official repository at a pinned commit (needs git and a C++ compiler)
  wheel   where GitHub cannot be reached or the build fails: the package LabGym carries
          detectron2's Python code with its licence headers under the prefix
          LabGym.detectron2. That code is repacked under its own name and installed. It
          lacks the compiled operators (rotated boxes, deformable convolution).

Stands alone on the standard library, because it runs before the package can be imported.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

REPOSITORY = "https://github.com/facebookresearch/detectron2.git"
COMMIT = "e0ec4e189d438848521aee7926f9900e114229f5"
PROBE_SECONDS = 15

DONOR = "LabGym"
DONOR_VERSION = "3.1.2"
DONOR_SHA256 = "a2900cff8a3fb508e1975f19b5f9abd9f261966db87b0c332697fb4138c1cb2b"
DONOR_PREFIX = "LabGym.detectron2"
DONOR_FOLDER = "LabGym/detectron2/"

WHEEL_VERSION = f"0.6+labgym{DONOR_VERSION}"
WHEEL_NAME = f"detectron2-{WHEEL_VERSION}-py3-none-any.whl"
DIST_INFO = f"detectron2-{WHEEL_VERSION}.dist-info"
LICENSE_FILE = Path(__file__).resolve().parent.parent / "LICENSE"

# The install_requires of detectron2's own setup.py; black serves LazyConfig.save only. Its
# pkg_resources comes from setuptools, which upstream does not state.
REQUIREMENTS = (
    "Pillow>=7.1",
    "matplotlib",
    "pycocotools>=2.0.2",
    "termcolor>=1.1",
    "yacs>=0.1.8",
    "tabulate",
    "cloudpickle",
    "tqdm>4.29.0",
    "tensorboard",
    "fvcore<0.1.6,>=0.1.5",
    "iopath<0.1.10,>=0.1.7",
    "omegaconf<2.4,>=2.1",
    "hydra-core>=1.1",
    "packaging",
    "setuptools<82",
    'black; extra == "lazyconfig"',
)

IMPORT_CHECK = """
import detectron2, detectron2.engine, detectron2.evaluation, detectron2.model_zoo
print(detectron2.__version__, detectron2.__path__[0])
"""

EPILOG = """example:
  python tools/install_detectron2.py --verify
  python tools/install_detectron2.py --method wheel
"""


class InstallError(Exception):
    """A way of installing that did not work; the message says why and what to do."""


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        check_torch()
        print(f"detectron2: {install(args.method)}", flush=True)
        if args.verify:
            print(f"detectron2: {verify()}", flush=True)
    except InstallError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--method",
        choices=("auto", "github", "wheel"),
        default="auto",
        help="auto: keep, github, wheel, in that order; the others reinstall (default: auto)",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="afterwards run Mask R-CNN R50-FPN forward and backward on the CPU (10 s)",
    )
    return parser.parse_args(argv)


def install(method: str = "auto") -> str:
    """Install by `method` and return a line that says which way was taken.

    Raises:
        InstallError: no way worked; the message has the reason of each.
    """
    if method == "github":
        return install_from_github()
    if method == "wheel":
        return install_from_donor()
    found, detail = importable()
    if found:
        return f"already installed, kept ({detail})"
    print(f"detectron2: not usable yet ({detail})", flush=True)
    return first_that_works((install_from_github, install_from_donor))


def first_that_works(ways: tuple[Callable[[], str], ...]) -> str:
    """Return what the first way without an InstallError returns."""
    reasons = []
    for way in ways:
        try:
            return way()
        except InstallError as error:
            print(f"detectron2: {error}", flush=True)
            reasons.append(f"  {error}")
    raise InstallError("detectron2 could not be installed:\n" + "\n".join(reasons))


def importable() -> tuple[bool, str]:
    """Whether detectron2 imports in a fresh interpreter, and its version or the reason."""
    # From a neutral folder: a checkout named detectron2 in the working folder is no install.
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_CHECK],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(sys.executable).parent,
    )
    lines = (result.stdout if result.returncode == 0 else result.stderr).strip().splitlines()
    return result.returncode == 0, lines[-1] if lines else f"exit code {result.returncode}"


def check_torch() -> None:
    """Raise InstallError if torch cannot be imported: detectron2 builds and runs on it."""
    command = [sys.executable, "-c", "import torch, torchvision"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise InstallError(
            f"torch and torchvision must work before detectron2 is installed, but {reason}. "
            f"Install them first: {sys.executable} -m pip install -r requirements.txt"
        )


def install_from_github() -> str:
    """Build and install the pinned commit of the official repository."""
    problem = github_problem()
    if problem:
        raise InstallError(f"github: {problem}")
    pip_install(
        # The build imports torch, which an isolated build environment would not have.
        ["--no-build-isolation", f"git+{REPOSITORY}@{COMMIT}"],
        "github: the build failed (above). It needs a C++ compiler (g++ or clang) and the "
        "headers of Python; or take --method wheel, which compiles nothing",
    )
    return usable_or_uninstall(f"built from {REPOSITORY} at {COMMIT[:10]}")


def github_problem() -> str:
    """Why the repository cannot be fetched from here; empty if it can."""
    if shutil.which("git") is None:
        return "git is not installed"
    try:
        subprocess.run(
            ["git", "ls-remote", "--exit-code", REPOSITORY, "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=PROBE_SECONDS,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0"},
        )
    except subprocess.TimeoutExpired:
        return f"{REPOSITORY} did not answer in {PROBE_SECONDS} s"
    except subprocess.CalledProcessError as error:
        reason = (error.stderr.strip().splitlines() or ["no message"])[-1]
        return f"{REPOSITORY} cannot be reached ({reason})"
    return ""


def install_from_donor() -> str:
    """Repack the code that the LabGym wheel carries and install it."""
    with tempfile.TemporaryDirectory(prefix="detectron2-") as folder:
        donor = download_donor(Path(folder))
        check_sha256(donor, DONOR_SHA256)
        wheel = build_wheel(donor, Path(folder), LICENSE_FILE.read_text(encoding="utf-8"))
        pip_install(
            ["--force-reinstall", "--no-deps", str(wheel)],
            "wheel: pip could not install the repacked wheel (above)",
        )
        # A second call without --force-reinstall, which would reinstall the requirements too.
        pip_install([str(wheel)], "wheel: pip could not install detectron2's requirements (above)")
    return usable_or_uninstall(f"repacked from the {DONOR} {DONOR_VERSION} wheel")


def usable_or_uninstall(way: str) -> str:
    """Return `way` if detectron2 now imports; otherwise remove it and say why it did not."""
    found, detail = importable()
    if not found:
        command = [sys.executable, "-m", "pip", "uninstall", "--yes", "--quiet", "detectron2"]
        subprocess.run(command, check=False)
        raise InstallError(f"{way}, but it does not import and was removed: {detail}")
    return f"{way} ({detail})"


def pip_install(arguments: list[str], message: str) -> None:
    """Run `pip install`; raise InstallError with `message` if it fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    if subprocess.run(command, check=False).returncode != 0:
        raise InstallError(message)


def download_donor(folder: Path) -> Path:
    """Fetch the donor wheel, without its requirements, and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    # The donor's other code limits its Python version; the part used here runs on all of ours.
    command += ["--ignore-requires-python", "--only-binary", ":all:", "--dest", str(folder)]
    result = subprocess.run([*command, f"{DONOR}=={DONOR_VERSION}"], check=False)
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode != 0 or not wheels:
        raise InstallError(
            f"wheel: pip could not download {DONOR}=={DONOR_VERSION} (above). Check the network "
            "and pip's index settings, or install detectron2 by hand and run this again"
        )
    return wheels[0]


def check_sha256(path: Path, expected: str) -> None:
    """Raise InstallError if the file is not the one that was examined and pinned."""
    actual = hashlib.sha256(path.read_bytes()).hexdigest()
    if actual != expected:
        raise InstallError(
            f"wheel: {path.name} has sha256 {actual}, expected {expected}. Do not use it: "
            "try again, or look at what the package index serves"
        )


def build_wheel(donor: Path, folder: Path, license_text: str) -> Path:
    """Write a detectron2 wheel from the donor's copy; equal input gives equal bytes.

    Args:
        donor: the donor's wheel.
        folder: where the new wheel is written.
        license_text: the Apache License 2.0, which the donor ships only as file headers.

    Raises:
        InstallError: the donor lacks detectron2, or its prefix was not fully rewritten.
    """
    files = donor_files(donor)
    files[f"{DIST_INFO}/METADATA"] = metadata().encode()
    files[f"{DIST_INFO}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: ovd_d2 install_detectron2\n"
        b"Root-Is-Purelib: true\nTag: py3-none-any\n"
    )
    files[f"{DIST_INFO}/licenses/LICENSE"] = license_text.encode()
    files[f"{DIST_INFO}/PROVENANCE.txt"] = provenance(donor).encode()
    files[f"{DIST_INFO}/RECORD"] = record(files).encode()
    target = folder / WHEEL_NAME
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return target


def donor_files(donor: Path) -> dict[str, bytes]:
    """Python and yaml files of the donor's detectron2, by their new path, prefix rewritten."""
    files = {}
    with zipfile.ZipFile(donor) as archive:
        for name in sorted(archive.namelist()):
            if name.startswith(DONOR_FOLDER) and name.endswith((".py", ".yaml")):
                # The prefix stands in imports, logger names, resource names and doc strings.
                content = archive.read(name).replace(DONOR_PREFIX.encode(), b"detectron2")
                files["detectron2/" + name.removeprefix(DONOR_FOLDER)] = content
    if "detectron2/__init__.py" not in files:
        raise InstallError(f"wheel: {donor.name} has no {DONOR_FOLDER}__init__.py")
    left = [name for name, content in files.items() if DONOR.encode() in content]
    if left:
        raise InstallError(f"wheel: the prefix {DONOR} is left in {left[0]} ({len(left)} files)")
    return files


def metadata() -> str:
    """The METADATA file: name, version, licence and requirements."""
    lines = [
        "Metadata-Version: 2.1",
        "Name: detectron2",
        f"Version: {WHEEL_VERSION}",
        "Summary: Detectron2's Python code, without its compiled operators",
        "Home-page: https://github.com/facebookresearch/detectron2",
        "Author: FAIR",
        "License: Apache-2.0",
        "License-File: LICENSE",
        "Requires-Python: >=3.7",
        "Provides-Extra: lazyconfig",
    ]
    return "\n".join([*lines, *(f"Requires-Dist: {entry}" for entry in REQUIREMENTS)]) + "\n"


def provenance(donor: Path) -> str:
    """Where the code comes from and what was changed (Apache License 2.0, section 4b)."""
    digest = hashlib.sha256(donor.read_bytes()).hexdigest()
    return (
        "Detectron2 (https://github.com/facebookresearch/detectron2), version 0.6, main branch,\n"
        "Copyright (c) Facebook, Inc. and its affiliates, Apache License 2.0.\n\n"
        f"Taken from the folder {DONOR_FOLDER} of {DONOR} {DONOR_VERSION} ({donor.name},\n"
        f"sha256 {digest}).\n"
        f"Changed: every {DONOR_PREFIX} reads detectron2; files other than .py and .yaml are\n"
        "left out. Nothing else of the package is used.\n"
    )


def record(files: dict[str, bytes]) -> str:
    """The RECORD file: path, sha256 and size of every other file."""
    rows = []
    for name, content in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*rows, f"{DIST_INFO}/RECORD,,"]) + "\n"


def verify() -> str:
    """Run Mask R-CNN R50-FPN forward and backward on a random image and say what came out.

    Raises:
        InstallError: a loss is not finite, or no gradient reached the backbone.
    """
    import torch
    from detectron2 import __version__, model_zoo
    from detectron2.modeling import build_model
    from detectron2.utils.events import EventStorage

    torch.manual_seed(0)
    cfg = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    model = build_model(cfg)
    with EventStorage():
        losses = model([random_example()])
    total = sum(losses.values())
    total.backward()
    gradient = model.backbone.bottom_up.stem.conv1.weight.grad
    if not torch.isfinite(total) or gradient is None or not gradient.abs().sum() > 0:
        raise InstallError(f"Mask R-CNN ran, but its loss ({total}) or gradient is not usable")
    with torch.inference_mode():
        model.eval()([random_example()])
    names = ", ".join(f"{name} {value.item():.3f}" for name, value in sorted(losses.items()))
    return f"version {__version__}, Mask R-CNN R50-FPN forward and backward: {names}"


def random_example() -> dict[str, object]:
    """A 96 x 96 image of noise with one box and mask, as detectron2's mapper would give it."""
    import torch
    from detectron2.structures import BitMasks, Boxes, Instances

    instances = Instances((96, 96))
    instances.gt_boxes = Boxes(torch.tensor([[16.0, 16.0, 64.0, 72.0]]))
    instances.gt_classes = torch.tensor([0])
    mask = torch.zeros(1, 96, 96, dtype=torch.bool)
    mask[:, 16:72, 16:64] = True
    instances.gt_masks = BitMasks(mask)
    image = torch.randint(0, 256, (3, 96, 96), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 96, "width": 96}


if __name__ == "__main__":
    sys.exit(main())
