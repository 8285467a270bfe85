"""Configuration of the joint image filters DKN and FDKN."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from transformers import PreTrainedConfig


class DKNConfig(PreTrainedConfig):
    """A deformable kernel network (Kim, Ponce and Ham, IJCV 2021) or its fast version.

    Args:
        architecture: `fdkn` predicts kernels on a grid of 4 x 4 pixels; `dkn` from a 51 x 51 patch around each pixel.
        residual: Kernels sum to 0 and their average is added to the target; otherwise they sum to 1.
        kernel_size: Samples along each side of a kernel, odd: 3 makes 9. In the residual form at least 3.
        window_size: Side of the square of pixels, odd and at least 3, that a kernel may read from; beyond it there are
            zeros.
        sampling: Where a kernel reads when its offsets are zero. `centered`: at the pixel and its neighbours;
            `compat`: displaced by 0.47 pixels and a little denser (window 15), as the authors' weights have learned it.
        guidance: False: the target alone decides the kernels.
        guidance_channels: Of the guidance; three are red, green and blue, of which `fdkn` takes the luma.
        target_channels: Of the target; all are filtered with the same kernels.

    Raises:
        ValueError: Fields that do not go together; all faults in one message, one per line.
    """

    model_type = "dkn"
    _auto_class: ClassVar[str | None] = "AutoConfig"  # save_pretrained copies this file and names it in config.json

    architecture: Literal["fdkn", "dkn"] = "fdkn"
    residual: bool = True
    kernel_size: int = 3
    window_size: int = 15
    sampling: Literal["centered", "compat"] = "centered"
    guidance: bool = True
    guidance_channels: int = 3
    target_channels: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if faults := [*self._choice_faults(), *self._size_faults()]:
            raise ValueError("\n".join(faults))
        super().__post_init__(**kwargs)

    def _choice_faults(self) -> list[str]:
        """Say which values are not among the allowed ones."""
        choices: dict[str, tuple[object, ...]] = {
            "architecture": ("fdkn", "dkn"),
            "sampling": ("centered", "compat"),
            "residual": (True, False),
            "guidance": (True, False),
        }
        return [
            f"{name}: {getattr(self, name)!r} is none of {', '.join(map(str, allowed))}"
            for name, allowed in choices.items()
            if not any(type(getattr(self, name)) is type(value) and getattr(self, name) == value for value in allowed)
        ]

    def _size_faults(self) -> list[str]:
        """Say which counts can not be, and whether the kernel fits its window."""
        counts = ("kernel_size", "window_size", "guidance_channels", "target_channels")
        if faults := [
            f"{name}: {getattr(self, name)!r} is not a whole number of at least 1"
            for name in counts
            if not _is_count(getattr(self, name))
        ]:
            return faults
        faults = [
            f"{name}: {value} is even, so that no pixel is in the middle; write {_odd_near(value)}"
            for name, value in (("kernel_size", self.kernel_size), ("window_size", self.window_size))
            if value % 2 == 0
        ]
        if self.kernel_size == 1 and self.residual:
            faults.append(
                "kernel_size: 1 can not learn in the residual form, where a kernel sums to 0: its only weight stays 0; "
                "write 3, or residual=False"
            )
        if self.window_size == 1:
            faults.append("window_size: 1 leaves nothing to sample but the pixel itself; write 3 or more")
        elif self.kernel_size > self.window_size:
            faults.append(
                f"kernel_size: {self.kernel_size} is more than window_size {self.window_size}; "
                f"write at most that, or a larger window"
            )
        return faults


def _odd_near(even: int) -> str:
    """Return the sizes to write instead; a side of 1 is a single pixel."""
    return "3" if even == 2 else f"{even - 1} or {even + 1}"


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
