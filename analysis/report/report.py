"""Report on runs, side by side on one self-contained page: `python -m analysis report RUN [RUN ...] --out DIR`."""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the real imports take a second; `--help` is answered before them
    from analysis.page.contents import Section
    from analysis.report.ranking import Result
    from analysis.runs import Record
    from analysis.style import Plate

_EPILOG = """An arm is all runs that agree in everything but learning rate and seeds. NAME is a placement (peri or
Peri-LN: every arm with it) or an arm's name as in the report's tables."""


class MadeReport(NamedTuple):
    """The report's index.html, and its results as text: empty without a comparison."""

    page: Path
    results: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return the exit code.

    Raises:
        InputError: An argument is not a run, or the folder cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m analysis report",
        description="Compare runs side by side on one self-contained page, with its plots as PNG and SVG: the best arm "
        "with its paired difference from the others and the claims of the Peri-LN paper; differences between the runs, "
        "training and validation with the task's baselines, activations, gradients and, for image tasks, the latest "
        "images: with the kernels of chosen pixels, or with pseudo labels and predictions and their IoU by class. "
        "Prints the path of the page and, of several arms, the result with a table of losses or another main metric.",
        epilog=_EPILOG,
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="run folders, or a pattern, e.g. 'runs/quickstart/placement-*'"
    )
    parser.add_argument("--out", required=True, type=Path, help="folder to create; an earlier report is replaced")
    parser.add_argument(
        "--arms",
        action="append",
        default=[],
        metavar="NAME[,NAME...]",
        help="show only the runs of these arms, e.g. --arms pre,peri; may be repeated",
    )
    parser.add_argument(
        "--baseline", metavar="NAME", help="arm that the others are compared with (default: pre, else the first)"
    )
    options = parser.parse_args(arguments)
    report = make_report(options.runs, options.out, arms=options.arms, baseline=options.baseline)
    print("\n\n".join(filter(None, (str(report.page), report.results))))
    return 0


def make_report(runs: Sequence[str], out: Path, *, arms: Sequence[str] = (), baseline: str | None = None) -> MadeReport:
    """Read runs and write their report.

    Args:
        runs: Run folders, or patterns of them.
        out: Folder to create; an earlier report is replaced.
        arms: Names of the arms to show, single or separated by commas; empty for all.
        baseline: Name of the arm that the others are compared with; None for Pre-LN, or the first without Pre-LN.

    Raises:
        InputError: An argument is not a run, a name fits no arm, or `out` holds anything but an earlier report.
    """
    from analysis.page.writing import check_out, write_page
    from analysis.report.arms import check_baseline, chosen_records
    from analysis.report.result import plain_text
    from analysis.runs import read_runs

    check_out(out, kind="report")
    given, notes = read_runs(runs)
    records = chosen_records(given, arms) if arms else given
    check_baseline(records, baseline)
    results = _results(records, baseline)
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    count = "1 run" if len(records) == 1 else f"{len(records)} runs"
    title = f"Report on {records[0].label}" if len(records) == 1 else f"Report on {count}"
    of = f" of {len(given)} given" if len(records) < len(given) else ""
    page = write_page(out, title, report_sections(records, notes, baseline), lead=f"{count}{of}, read on {made}.")
    texts = [f"{kind}: {plain_text(result)}" if len(results) > 1 else plain_text(result) for kind, result in results]
    return MadeReport(page, "\n\n".join(texts))


def _results(records: Sequence[Record], baseline: str | None) -> list[tuple[str, Result]]:
    """Return the result of each task that has several arms."""
    from analysis.report.ranking import result_of

    results = []
    for kind in dict.fromkeys(record.kind for record in records):
        result = result_of([record for record in records if record.kind == kind], baseline)
        if result is not None:
            results.append((kind, result))
    return results


def report_sections(records: Sequence[Record], notes: Sequence[str] = (), baseline: str | None = None) -> list[Section]:
    """Return the sections of a report, separate for each task, since metrics of different tasks are not comparable."""
    from analysis.report.segmentation import segmentation_sections

    kinds = list(dict.fromkeys(record.kind for record in records))
    across = segmentation_sections(records)
    if len(kinds) == 1:
        return [*across, *_task_sections(records, notes, prefix="", baseline=baseline)]
    listed = ", ".join(f"{kind} ({sum(record.kind == kind for record in records)})" for kind in kinds)
    warning = f"These runs have different tasks: {listed}. Their losses are not comparable; each task has its own part."
    sections = [*across]
    for i, kind in enumerate(kinds):
        of_kind = [record for record in records if record.kind == kind]
        sections += _task_sections(of_kind, [warning, *notes] if i == 0 else [], prefix=kind, baseline=baseline)
    return sections


def _task_sections(
    records: Sequence[Record], notes: Sequence[str], *, prefix: str, baseline: str | None
) -> list[Section]:
    from analysis.figures import training as training_figures
    from analysis.figures.loss import loss
    from analysis.figures.modules import is_one_stack
    from analysis.groups import by_numbers
    from analysis.page.contents import Section
    from analysis.report import facts, tables
    from analysis.report.ranking import result_of
    from analysis.report.result import sections

    records = by_numbers(records)
    result = result_of(records, baseline)
    heading = f"{prefix}: " if prefix else ""
    parts = [
        *(sections(result, heading) if result else []),
        Section(
            title=f"{heading}Runs",
            notes=[*notes, *facts.collected_notes(records)],
            tables=[
                facts.facts(records),
                *facts.differences(records),
                *_present(facts.data(records)),
                facts.files(records),
            ],
        ),
        Section(
            title=f"{heading}Training",
            tables=tables.validation(records),
            plates=[
                loss(records),
                training_figures.validation(records),
                *_further_training(records),
                training_figures.gradient_norm(records),
                *([] if result else [training_figures.learning_rate(records)]),
            ],
        ),
        Section(
            title=f"{heading}Activations",
            tables=_present(tables.fits(records)),
            plates=_activation_plates(records),
        ),
        Section(
            title=f"{heading}Gradients, norm scales and updates",
            tables=_present(tables.uniformity(records)) if is_one_stack(records) else [],
            plates=_gradient_plates(records),
        ),
        *_layer_sections(records, heading),
        *_image_sections(records, heading),
    ]
    return [replace(part, plates=[_named(plate, prefix) for plate in part.plates]) for part in parts]


def _further_training(records: Sequence[Record]) -> list[Plate]:
    """Return plots of the IoU by class and of the training metrics besides the loss, where the task has any."""
    from analysis.figures.class_iou import class_curves
    from analysis.figures.training_metrics import training_metrics

    return [plate for plate in (class_curves(records), training_metrics(records)) if plate.panels]


def _activation_plates(records: Sequence[Record]) -> list[Plate]:
    from analysis.figures import depth as depth_figures
    from analysis.figures import sites as site_figures

    missing = depth_figures.missing_rows(records, "activations")
    if len(missing) == len(records):
        return [_absent("activations", "Variance, maxima and module outputs", missing)]
    if all(depth_figures.stream_rows(record).empty for record in records):
        return [site_figures.sites(records)]
    return [depth_figures.variance(records), depth_figures.maxima(records), site_figures.module_outputs(records)]


def _gradient_plates(records: Sequence[Record]) -> list[Plate]:
    from analysis.figures import gradients as figures
    from analysis.figures.depth import missing_rows
    from analysis.figures.modules import gradient_by_module, is_one_stack

    missing = missing_rows(records, "gradients")
    if len(missing) == len(records):
        return [_absent("gradients", "Gradient norms, norm scales and update sizes by layer", missing)]
    if not is_one_stack(records):
        return [gradient_by_module(records), figures.update_ratios(records)]
    return [figures.gradient_over_depth(records), figures.norm_scales(records), figures.update_ratios(records)]


def _layer_sections(records: Sequence[Record], heading: str) -> list[Section]:
    """Return the section of single layers, or none if no run was to measure them."""
    from analysis.figures.layers import asks_for_layers, layers
    from analysis.page.contents import Section

    if not any(asks_for_layers(record) for record in records):
        return []
    return [Section(title=f"{heading}Layers", plates=[layers(records)])]


def _image_sections(records: Sequence[Record], heading: str) -> list[Section]:
    """Return the section of images, or none if no run's task saves any."""
    from analysis.figures.pictures.filtered import choose, pictures
    from analysis.figures.pictures.kernels import kernels
    from analysis.figures.pictures.segmented import choose_exhibits, exhibit
    from analysis.images.saved import keeps_images, read_images
    from analysis.page.contents import Section
    from analysis.style import Plate

    runs = [read_images(record) for record in records if keeps_images(record)]
    if not runs:
        return []
    chosen, notes = choose(runs)
    exhibits, further = choose_exhibits(runs)
    broken = [f"{run.record.label}: {note}" for run in runs for note in run.notes]
    plates = [draw for i, image in enumerate(chosen) for draw in (pictures(image, i), kernels(image, i, records))]
    plates += _explained_once([exhibit(image, i) for i, image in enumerate(exhibits)])
    if missing := [run.absence for run in runs if run.absence]:
        plates.append(Plate(name="images", title="Validation images", caption="", missing=missing))
    title = "Images" if exhibits else "Validation images"
    return [Section(title=f"{heading}{title}", notes=[*broken, *notes, *further], plates=plates)]


def _explained_once(plates: Sequence[Plate]) -> list[Plate]:
    """Return plates of which those after the first with the same caption refer to it."""
    first: dict[str, str] = {}
    shown = []
    for plate in plates:
        known = first.setdefault(plate.caption, plate.title)
        is_repeated = known != plate.title
        shown.append(replace(plate, caption=f"Panels as explained below {known}.") if is_repeated else plate)
    return shown


def _absent(name: str, title: str, missing: Sequence[str]) -> Plate:
    from analysis.style import Plate

    return Plate(name=name, title=title, caption="", missing=missing)


def _named(plate: Plate, prefix: str) -> Plate:
    return replace(plate, name=f"{prefix}-{plate.name}") if prefix else plate


def _present(table) -> list:
    return [] if table is None else [table]
