"""Peak GPU speeds, used for MFU and for the hours in a plan."""

from __future__ import annotations

# Dense bf16 peaks in FLOP/s, from vendor data sheets. Where one name contains another, the longer one comes first.
PEAK_FLOPS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


def peak_flops(device_name: str) -> float | None:
    """Return the dense bf16 peak in FLOP/s of a GPU, by the name its driver reports; None if it is not listed."""
    return next((peak for part, peak in PEAK_FLOPS.items() if part in device_name), None)
