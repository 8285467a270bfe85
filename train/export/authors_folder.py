"""Self-contained Hugging Face folders of the weights that the authors of DKN published."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData
from torch import Tensor

from modeling.joint_filter.authors_weights import load_authors_weights, shape_of_authors_weights
from modeling.joint_filter.configuration_dkn import DKNConfig
from modeling.joint_filter.modeling_dkn import DKNModel
from train.config.commands.authors_weights import AuthorsWeightsConfig
from train.config.errors import ConfigError
from train.export.card import TRANSFORMERS
from train.export.model_folder import complete_or_absent, require_free
from train.tasks.joint_filter.joint_filtering import LOADING, ON_FILES
from train.tasks.segmentation.initial_weights import sha256, tensors_of

_CARD = """\
---
{metadata}
---

# {name}

{summary}, with the authors' weights. They were trained to sharpen depth maps downsampled by a factor of {scale} \
({downsampling}), guided by the color image.

## Use

Needs transformers {transformers} or later, and runs the Python files in this folder.

```python
{usage}
```

## Origin

- weights: `{file}`, SHA-256 {sha256}, with the tensors renamed and the sampling of their code (`sampling: compat`)
- method: Kim, Ponce and Ham, Deformable kernel networks for joint image filtering, IJCV 2021
- license: that of the weights is their authors' to state
"""
_USAGE = 'sharp = model.filter(Image.open("guidance.png"), Image.open("target.png"))'


def import_weights(file: Path, out: Path, settings: AuthorsWeightsConfig, *, place: str = "FOLDER") -> list[str]:
    """Write a file of the authors' weights as a folder that loads like any export.

    Args:
        file: The file.
        out: The folder to write.
        settings: What the file does not tell.
        place: Folder or hub name in the code on the model card.

    Returns:
        What was written, a line each.

    Raises:
        ConfigError: The file holds other weights or none, the settings do not fit them, or OUT is in use.
    """
    model = _model(file, tensors_of(file), settings)
    require_free(out)
    with complete_or_absent(out) as folder:
        model.save_pretrained(folder)
        (folder / "README.md").write_text(_card(model, file, out, settings, place))
    return [f"{_summary(model.config)}; pass trust_remote_code=True to load it"]


def _model(file: Path, tensors: Mapping[str, Tensor], settings: AuthorsWeightsConfig) -> DKNModel:
    purpose = {"task": "depth_upsampling", "scale": settings.scale, "downsampling": settings.downsampling}
    stated = {"residual": settings.residual, "window_size": settings.window_size, "purpose": purpose}
    try:
        model = DKNModel(DKNConfig(**shape_of_authors_weights(tensors), **stated))
        load_authors_weights(model, tensors)
    except ValueError as error:
        raise ConfigError([f"{file}: {line}" for line in str(error).splitlines()]) from None
    bad = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if bad:
        raise ConfigError([f"{file}: {', '.join(bad)}: not finite; get the file again"])
    return model.eval()


def _card(model: DKNModel, file: Path, out: Path, settings: AuthorsWeightsConfig, place: str) -> str:
    metadata = ModelCardData(
        library_name="transformers", pipeline_tag="image-to-image", tags=["dkn", "joint-image-filtering"]
    )
    return _CARD.format(
        metadata=metadata.to_yaml(line_break="\n"),
        name=out.resolve().name,
        summary=_summary(model.config),
        scale=settings.scale,
        downsampling=settings.downsampling,
        transformers=TRANSFORMERS,
        usage=(LOADING + _USAGE + ON_FILES).replace("FOLDER", place),
        file=file.name,
        sha256=sha256(file),
    )


def _summary(config: DKNConfig) -> str:
    form = "residual" if config.residual else "direct"
    guidance = "" if config.guidance else ", without guidance"
    return (
        f"{config.architecture.upper()}, a joint image filter ({config.kernel_size} x {config.kernel_size} samples in "
        f"a window of {config.window_size} pixels, {form} form{guidance})"
    )
