"""docs/placements.md and the records of the placements say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from modeling.decoder.facts_placements_periln import CHOICES, ONE, PLACEMENTS

PAGE = (Path(__file__).parents[1] / "docs/placements.md").read_text()
DESCRIBED = PAGE[: PAGE.index("## Measured here")]  # the table of figures has rows of the same names
ROWS = {
    cells[0].strip("` "): cells
    for line in DESCRIBED.splitlines()
    if line.startswith("| `")
    for cells in [line.strip("| ").split(" | ")]
}


@pytest.mark.parametrize("name", CHOICES)
def test_a_placement_has_its_row_its_source_and_its_use(name: str) -> None:
    assert CHOICES[name].source in ROWS[name][-1]
    assert re.search(rf"^- \*\*.*`{name}`.*\*\*: ", PAGE, flags=re.MULTILINE)


@pytest.mark.parametrize("name", PLACEMENTS)
def test_a_row_has_the_equations_the_constants_and_the_initialization_of_its_record(name: str) -> None:
    placement, row = PLACEMENTS[name], " | ".join(ROWS[name])
    assert all(f"`{each.equation}`" in row for each in placement.sub_layers)
    constants = (placement.stream_factor, placement.input_factor, placement.input_scale, placement.output_scale)
    assert all(constant.text in row for constant in constants if constant is not ONE)
    if placement.initialization is None:
        assert ("not `depth_scaled`" if placement.unscaled_because else "as configured") in row
    else:
        assert placement.initialization.text in row
