"""The teacher: one wrapper around any open_clip model.

Everything made with a teacher (vocabularies, embedding caches) carries its `fingerprint`, so that
artefacts of different teachers are never mixed.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from ovd_d2.clip.eva_weights import eva_to_open_clip, is_eva_checkpoint, unwrapped_state
from ovd_d2.clip.preprocess import Preprocessing
from ovd_d2.clip.shipped import MODULES, shipped_weights
from ovd_d2.clip.untrained import untrained_model

_MAX_LISTED = 5
SCHEMAS = ("hf-hub:", "local-dir:")  # hf-hub:owner/name and local-dir:path bring their weights

Tokenizer = Callable[[list[str]], torch.Tensor]


class CLIPTeacher:
    """Image and text encoder with unit-length outputs, frozen and in evaluation mode.

    Attributes:
        architecture: open_clip's name of the model.
        embedding_dim: D.
        preprocessing: input size, normalisation and resizing; `image_size` (height, width), `mean`,
            `std` and `interpolation` are short for its fields.
        device: where the model runs.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        tokenizer: Tokenizer,
        preprocess_cfg: dict[str, Any],
        *,
        architecture: str,
        device: str | torch.device = "cpu",
    ) -> None:
        """Wraps a loaded model.

        Args:
            model: an open_clip model (`encode_image`, `encode_text`).
            tokenizer: sentences -> (N, L) int64 token ids.
            preprocess_cfg: fields of open_clip's `PreprocessCfg`.
            architecture: name for the fingerprint.
            device: the model is moved there.
        """
        self.architecture = architecture.replace("/", "-")
        self.device = torch.device(device)
        # channels last: convolutions on a CPU are about 1.7 times as fast
        self._model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._model.eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self.preprocessing = Preprocessing.from_open_clip(preprocess_cfg)
        self.embedding_dim: int = self.encode_text(["a"]).shape[1]

    @classmethod
    def from_open_clip(
        cls, architecture: str, pretrained: str, device: str | torch.device = "cpu"
    ) -> CLIPTeacher:
        """Loads an open_clip model.

        Args:
            architecture: an open_clip model name ("ViT-B-32", "Pictogram-RN", ...).
            pretrained: a pretrained tag of that architecture (open_clip downloads it) or the path
                of a local checkpoint (.safetensors, or .pt without pickled objects; nothing is
                downloaded). "shipped" names the teacher in this package for "Pictogram-RN",
                "shipped-base" the one without novel glyphs.
            device: where to run.

        Raises:
            ValueError: unknown architecture or tag, or weights that do not fit the architecture.
            OSError: no such file, or weights that cannot be downloaded.
        """
        _check_architecture(architecture, pretrained)
        _check_activation(architecture, pretrained)
        weights = _resolve_weights(architecture, pretrained)
        if weights is None:
            model = _download(architecture, pretrained)
        else:
            model = _load_local(architecture, weights)
        tokenizer = open_clip.get_tokenizer(architecture)
        preprocess_cfg = open_clip.get_model_preprocess_cfg(model)
        return cls(model, tokenizer, preprocess_cfg, architecture=architecture, device=device)

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) of the image encoder's input, pixels."""
        return self.preprocessing.image_size

    @property
    def mean(self) -> tuple[float, ...]:
        """Per RGB channel, for pixels in [0, 1]."""
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per RGB channel, for pixels in [0, 1]."""
        return self.preprocessing.std

    @property
    def interpolation(self) -> str:
        """ "bicubic" or "bilinear"."""
        return self.preprocessing.interpolation

    @cached_property
    def temperature(self) -> float:
        """What it divides cosine similarities by, as learnt (0.01 of OpenAI's CLIPs)."""
        scale: torch.Tensor = self._model.logit_scale  # type: ignore[assignment]
        return float((-scale).exp())

    @cached_property
    def fingerprint(self) -> str:
        """`<architecture>-<16 hex digits>`: SHA-256 over names, shapes, values of all weights."""
        digest = hashlib.sha256()
        for key, value in sorted(self._model.state_dict().items()):
            array = value.detach().cpu().contiguous()
            digest.update(f"{key}:{array.dtype}:{tuple(array.shape)};".encode())
            digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
        return f"{self.architecture}-{digest.hexdigest()[:16]}"

    @property
    def visual(self) -> torch.nn.Module:
        """open_clip's image tower, the one that is used here: copy it before you change it."""
        return self._model.visual  # type: ignore[return-value]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All weights under open_clip's names, image tower below `visual.`."""
        return self._model.state_dict()

    def timm_trunk_state(self) -> dict[str, torch.Tensor]:
        """The weights of the image tower's timm network, under timm's own names.

        Raises:
            ValueError: the architecture's image tower is not a timm network.
        """
        prefix = "visual.trunk."
        state = self._model.state_dict()
        trunk = {k[len(prefix) :]: v for k, v in state.items() if k.startswith(prefix)}
        if not trunk:
            raise ValueError(f"the image tower of {self.architecture} is not a timm network")
        return trunk

    @torch.no_grad()  # not inference_mode: its tensors could not take part in training later
    def encode_images(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, 3, h, w) normalised float32 pixels -> (N, D) float32 unit rows on `device`."""
        height, width = self.image_size
        if batch.ndim != 4 or tuple(batch.shape[1:]) != (3, height, width):
            raise ValueError(
                f"images for {self.architecture}: expected shape (N, 3, {height}, {width}), "
                f"got {tuple(batch.shape)}"
            )
        if batch.shape[0] == 0:
            return torch.zeros(0, self.embedding_dim, device=self.device)
        batch = batch.to(self.device, memory_format=torch.channels_last)
        features = self._model.encode_image(batch)  # type: ignore[operator]
        return F.normalize(features.float(), dim=1)

    @torch.no_grad()
    def encode_text(self, sentences: Sequence[str]) -> torch.Tensor:
        """N sentences, cut to the context length -> (N, D) float32 unit rows on `device`."""
        if not sentences:
            return torch.zeros(0, self.embedding_dim, device=self.device)
        tokens = self._tokenizer(list(sentences)).to(self.device)  # (N, L)
        features = self._model.encode_text(tokens)  # type: ignore[operator]
        return F.normalize(features.float(), dim=1)

    def cut_off(self, sentence: str) -> str:
        """The words at the end of a sentence that the text encoder does not read; "" if none.

        Of a sentence that just fills its context, too, the last ones may be named.
        """
        context = self._tokenizer(["a"]).shape[1]
        if len(sentence.encode()) + 2 < context:  # a token has at least a byte
            return ""
        words = sentence.split()
        whole = self._tokenizer([sentence])
        if not torch.equal(whole, self._tokenizer([f"{sentence} {words[-1]}"])):
            return ""
        prefixes = [" ".join(words[: k + 1]) for k in range(len(words))]
        read = (self._tokenizer(prefixes) == whole).all(dim=1).int().argmax().item()
        return " ".join(words[int(read) + 1 :]) or words[-1]

    def preprocess_image(self, image: Image.Image | np.ndarray) -> torch.Tensor:
        """open_clip's inference transform: PIL or (H, W, 3) uint8 RGB -> (3, h, w) float32."""
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image)
        return self.preprocessing.prepare([image.convert("RGB")])[0]


def _check_architecture(architecture: str, pretrained: str) -> None:
    if architecture.startswith(SCHEMAS):
        if pretrained:
            raise ValueError(
                f"architecture '{architecture}' brings its own weights: leave pretrained empty, "
                f"got '{pretrained}'"
            )
        return
    shipped_weights(architecture)  # open_clip knows it now
    known = open_clip.list_models()
    if architecture.replace("/", "-") not in known:
        raise ValueError(
            f"unknown open_clip architecture '{architecture}'; {len(known)} are known "
            f"(python -c 'import open_clip; print(open_clip.list_models())'), for example "
            f"ViT-B-32, RN50, {', '.join(MODULES)}"
        )


def _check_activation(architecture: str, pretrained: str) -> None:
    """Raises ValueError where open_clip only warns: weights for QuickGELU in a network with GELU.

    The embeddings would be wrong without a sign of it. Of a local file it cannot be known.
    """
    name = architecture.replace("/", "-")
    if not open_clip.get_pretrained_cfg(name, pretrained).get("quick_gelu"):
        return
    right = f"{name}-quickgelu"
    if not open_clip.get_model_config(name).get("quick_gelu") and right in open_clip.list_models():
        raise ValueError(
            f"'{pretrained}' was trained with QuickGELU, which {architecture} does not compute: "
            f"name the architecture {right}"
        )


def _resolve_weights(architecture: str, pretrained: str) -> Path | None:
    """The local file that `pretrained` names, or None for a tag that open_clip resolves itself."""
    if pretrained in (shipped := shipped_weights(architecture)):
        return shipped[pretrained]
    if architecture.startswith(SCHEMAS):
        return None
    tags = open_clip.list_pretrained_tags_by_model(architecture.replace("/", "-"))
    if pretrained in tags:
        return None
    if "://" in pretrained:
        from detectron2.utils.file_io import PathManager

        pretrained = PathManager.get_local_path(pretrained)
    path = Path(pretrained)
    if path.is_file():
        return path
    if path.suffix or path.parent != Path("."):
        raise FileNotFoundError(f"teacher weights not found: {path} (for {architecture})")
    raise ValueError(
        f"'{pretrained}' is neither a local file nor a pretrained tag of {architecture}; "
        f"its tags: {', '.join(tags) or 'none'}"
    )


def _download(architecture: str, pretrained: str) -> torch.nn.Module:
    """The model of a tag or schema, out of the cache of downloads or from the network."""
    root = logging.getLogger()  # where open_clip logs what it then raises
    root.addFilter(_is_no_download_error)
    try:
        return open_clip.create_model(architecture, pretrained=pretrained)
    except RuntimeError as error:  # open_clip's for anything that goes wrong with a download
        reason = " ".join(str(error).split())
        raise OSError(
            f"{' '.join(filter(None, (architecture, pretrained)))}: these weights are not on this "
            f"machine and could not be downloaded ({reason}). Load this teacher once where there "
            "is a network and copy ~/.cache/huggingface (or $HF_HOME) from there, or name a file "
            "of its weights (MODEL.OVD.TEACHER.PRETRAINED FILE, in tools --pretrained FILE)"
        ) from error
    finally:
        root.removeFilter(_is_no_download_error)


def _is_no_download_error(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("Failed to download weights")


def _load_local(architecture: str, path: Path) -> torch.nn.Module:
    """Strict load without the network; on failure differing keys are listed with both shapes."""
    try:
        found = unwrapped_state(_read(path))
    except Exception as error:  # the readers raise whatever they like on a damaged file
        raise ValueError(
            f"{path}: cannot be read as a checkpoint ({type(error).__name__}: {error}); expected "
            "safetensors, or a .pt state dict without pickled objects"
        ) from error
    untrained = untrained_model(architecture, "meta")
    try:
        if is_eva_checkpoint(found, untrained):
            found = eva_to_open_clip(found, untrained)
            model = untrained_model(architecture)
            model.load_state_dict(found)
            return model
        return open_clip.create_model(architecture, pretrained=str(path), weights_only=True)
    except (KeyError, RuntimeError, TypeError) as error:
        problems = _shape_problems(untrained.state_dict(), found)
        raise ValueError(
            f"{path} does not fit the architecture {architecture}:\n  "
            + "\n  ".join(problems or [str(error)])
            + "\nGive the architecture the file was trained with, or another file."
        ) from error


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def _shape_problems(expected: dict[str, torch.Tensor], found: dict[str, Any]) -> list[str]:
    problems = []
    for key in sorted(expected.keys() | found.keys()):
        want = tuple(expected[key].shape) if key in expected else "nothing"
        have = tuple(getattr(found[key], "shape", ())) if key in found else "nothing"
        if want != have:
            problems.append(f"{key}: expected {want}, found {have}")
    if len(problems) > _MAX_LISTED:
        more = len(problems) - _MAX_LISTED
        problems = [*problems[:_MAX_LISTED], f"... and {more} more"]
    return problems
