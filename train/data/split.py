"""The training and validation splits of a data set."""

from __future__ import annotations

from typing import Literal

Split = Literal["training", "validation"]
SPLITS: tuple[Split, ...] = ("training", "validation")
