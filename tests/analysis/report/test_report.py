"""The page as a whole: complete, self-contained, and honest about what is missing."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit
from urllib.request import url2pathname

import pytest

from analysis import __main__ as entry
from analysis.page.contents import Section, Table, number_text
from analysis.page.writing import write_page
from analysis.report import facts
from analysis.runs import InputError, read_runs
from tests.analysis.synthetic import TOKENS_PER_STEP, loss_at, metric_rows, write_depth_run, write_run

ROOT = Path(__file__).parents[3]
VOID = {"meta", "link", "img", "br"}


class Page(HTMLParser):
    """Collects tags, addresses and text, and checks that tags are closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.headings: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.words: list[str] = []
        self.feed(path.read_text().replace("<wbr>", ""))  # a place where a line may end
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [value for name in ("src", "href") if (value := found.get(name)) is not None]
        if tag == "img":
            self.images.append(found)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append(data)


def report(runs: Sequence[Path], out: Path) -> Page:
    assert entry.main(["report", *map(str, runs), "--out", str(out)]) == 0
    return Page(out / "index.html")


def test_the_page_stands_alone_and_shows_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / p, task__model__norm_placement=p) for p in ("pre", "peri")]
    page = report(runs, tmp_path / "out")
    assert capsys.readouterr().out.splitlines()[0] == str(tmp_path / "out/index.html")
    assert all(str(image["src"]).startswith("data:") for image in page.images)
    assert all(image["alt"] for image in page.images)
    files = sorted((tmp_path / "out/figures").iterdir())
    assert len(page.images) * 3 == len(files)
    assert {file.suffix for file in files} == {".png", ".svg", ".csv"}
    linked = [address for address in page.addresses if not address.startswith(("data:", "#"))]
    assert all(":" not in address and not address.startswith("/") for address in linked)
    reached = {(tmp_path / "out" / address).resolve() for address in linked}
    assert reached == {*files, *(run / name for run in runs for name in ("config.yaml", "events.jsonl"))}
    assert "<text" in (tmp_path / "out/figures/loss.svg").read_text()
    assert "http" not in page.text
    for heading in ("Result", "Stability", "Claims of the Peri-LN paper (arXiv 2502.02732)",
                    "Facts", "Differences", "Loss", "Gradient norm", "Variance of the residual stream",
                    "Gradient norm against depth", "Scales of the output norms", "Size of the updates"):  # fmt: skip
        assert heading in page.headings
    assert "40 of 40" in page.text
    assert "task.model.norm_placement pre peri" in page.text
    assert "012345678" in page.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "peri", "pre"]  # nothing half-written stays


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    off = {"activations_every": None, "gradients_every": None}
    run = write_run(tmp_path / "run", activations=[], gradients=[], probes=off, metrics=metric_rows(7), events=[])
    page = report([run], tmp_path / "out")
    assert "Not shown: run: no activations.jsonl: probes.activations_every was null." in page.text
    assert "Not shown: run: no gradients.jsonl: probes.gradients_every was null." in page.text
    assert "step 7 of 40: the run is in progress or was stopped." in page.text
    assert not list((tmp_path / "out/figures").glob("variance*"))


def test_a_run_that_has_just_begun_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", activations=[], gradients=[], metrics=[], events=[])
    page = report([run], tmp_path / "out")
    assert "0 of 40" in page.text
    assert not page.images


def test_different_tasks_have_a_part_each(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "text", activations=[], gradients=[]), write_depth_run(tmp_path / "vision")]
    page = report(runs, tmp_path / "out")
    assert "different tasks: language_model (1), depth_upsampling (1)" in page.text
    assert "language_model: Training" in page.headings
    assert "depth_upsampling: Training" in page.headings
    assert "validation RMSE cm" in page.text
    assert (tmp_path / "out/figures/depth_upsampling-validation-rmse-cm.png").exists()


def test_an_earlier_report_is_replaced_and_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "run", activations=[], gradients=[]), tmp_path / "out"
    report([run], out)
    (out / "figures/old.png").write_text("")
    report([run], out)
    assert not (out / "figures/old.png").exists()
    (out / "notes.txt").write_text("mine")
    assert entry.main(["report", str(run), "--out", str(out)]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "notes.txt").read_text() == "mine"
    for other, fragment in ((run, "holds no earlier report"), (run / "config.yaml", "is a file"),
                            (run / "config.yaml/deeper", "cannot be created")):  # fmt: skip
        assert entry.main(["report", str(run), "--out", str(other)]) == 2
        assert fragment in capsys.readouterr().err


def test_an_inspection_is_not_replaced_by_a_report(tmp_path: Path) -> None:
    write_page(tmp_path / "out", "Model", [], kind="inspection", files={"model/summary.json": "{}"})
    assert (tmp_path / "out/model/summary.json").read_text() == "{}"
    write_page(tmp_path / "out", "Model", [], kind="inspection")
    with pytest.raises(InputError, match="no earlier report"):
        write_page(tmp_path / "out", "Runs", [])


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    write_page(tmp_path / "out", "Before", [])
    broken = Section(title="x", tables=[Table(title="t", header=["a"], rows=None)])  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_page(tmp_path / "out", "After", [broken])
    assert "Before" in (tmp_path / "out/index.html").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_names_are_escaped(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", name="<b>&", activations=[], gradients=[])
    page = report([run], tmp_path / "out")
    assert "<b>&" in page.text
    assert "<b>" not in (tmp_path / "out/index.html").read_text()


def test_wrong_input_is_one_message_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["report", str(tmp_path / "none*"), str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "matches nothing" in said
    assert "not a run folder" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("arguments", [[], ["reprot"]])
def test_an_unknown_command_is_answered_with_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry.main(arguments) == 2
    assert "usage: python -m analysis {report|inspect|card}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (float("nan"), "-"), (12, "12"), (1234567, "1,234,567"), (3.4, "3.400"), (0.003, "0.003"),
     (float("inf"), "infinite"), (54321.7, "54,322"), ("x", "x"), (True, "True"), (1234.5, "1234")],
)  # fmt: skip
def test_cells_read_well(value: object, text: str) -> None:
    assert number_text(value) == text


def test_amounts_of_data_are_shown(tmp_path: Path) -> None:
    """400 samples are 4 epochs over 100 windows."""
    rows = [{**row, "tokens": 6000, "epoch": 4.0} for row in metric_rows(10)]
    folder = write_run(tmp_path / "a", metrics=rows)
    environment = json.loads((folder / "environment.json").read_text())
    environment["parameters"] = 300
    environment["data"] = {
        "training_documents": 7,
        "training_windows": 100,
        "validation_documents": 2,
        "sources": {"task.data.sources[0]": {"path": "books/*.txt", "files": 3, "documents": 9, "bytes": 4321}},
        "tokens_by_source": {"task.data.sources[0]": 1234},
        "validation_sets": [{"label": "b", "documents": 2, "tokens": 55, "windows": 5}],
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    (record,) = read_runs([str(folder)])[0]
    values = {row[0]: row[1] for row in facts.facts([record]).rows}
    assert (values["epochs"], values["tokens per parameter"]) == (4.0, 20.0)
    of_data = facts.data([record])
    assert of_data is not None
    assert of_data.header == ["run", "part", "files", "documents", "bytes", "tokens", "windows"]
    assert [list(row) for row in of_data.rows] == [
        ["a", "training", None, 7, None, None, 100],
        ["a", "validation", None, 2, None, None, None],
        ["a", "task.data.sources[0] books/*.txt", 3, 9, 4321, 1234, None],
        ["a", "validation set b", None, 2, None, 55, 5],
    ]
    assert facts.data(read_runs([str(write_run(tmp_path / "b"))])[0]) is None


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_numbers_of_a_figure_lie_beside_it(tmp_path: Path) -> None:
    """All of them, at full precision: 5,000 logged steps are thinned in the picture only."""
    runs = [
        write_run(tmp_path / f"s{seed}", seed=seed, steps=5000, metrics=metric_rows(5000, offset=0.1 * seed))
        for seed in (0, 1)
    ]
    report(runs, tmp_path / "out")
    rows = rows_of(tmp_path / "out/figures/loss.csv")
    raw = [row for row in rows if row["quantity"] == "training loss"]
    assert len(raw) == 5000
    assert {row["label"] for row in rows} == {"Peri-LN (2 seeds)"}
    assert [float(row["y"]) for row in raw] == [(loss_at(step) + (loss_at(step) + 0.1)) / 2 for step in range(1, 5001)]
    assert raw[6]["x"] == str(7.0 * TOKENS_PER_STEP)
    ends = [row for row in rows if row["quantity"] == "validation loss"]
    assert (float(ends[-1]["low"]), float(ends[-1]["high"])) == (loss_at(5000) + 0.1, loss_at(5000) + 0.1 + 0.1)
    fits = {row["quantity"] for row in rows_of(tmp_path / "out/figures/variance-last.csv")}
    assert fits == {"", "linear fit", "exponential fit"}
    marks = rows_of(tmp_path / "out/figures/maxima-abs-depth.csv")
    assert [(row["x"], row["y"]) for row in marks if row["quantity"] == "fp16 limit"] == [("", "65504.0")] * 2


def test_a_gap_is_an_empty_cell(tmp_path: Path) -> None:
    rows = [{**row, "grad_norm": None} if row["step"] == 3 else row for row in metric_rows(10)]
    report([write_run(tmp_path / "run", metrics=rows, activations=[], gradients=[])], tmp_path / "out")
    assert [row["y"] for row in rows_of(tmp_path / "out/figures/gradient-norm.csv")][1:4] == ["0.5", "", "0.25"]


@pytest.mark.parametrize("name", ["plain", "a b", "it's", 'double"quote', "#1", "100%25", "a:b", "?q=1&<b>", "ü"])
@pytest.mark.parametrize("out", ["report", "runs/report", "runs/{}/report", "elsewhere/deep/report"])
def test_links_to_the_runs_files_are_relative_and_quoted(tmp_path: Path, name: str, out: str) -> None:
    folder = write_run(tmp_path / "runs" / name, activations=[], gradients=[], metrics=[])
    place = tmp_path / out.format(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    (record,) = read_runs([str(folder)])[0]
    write_page(place, "x", [Section(title="Runs", tables=[facts.files([record])])])
    links = [address for address in Page(place / "index.html").addresses if not address.startswith("data:")]
    reached = [Path(url2pathname(urlsplit(urljoin((place / "index.html").as_uri(), link)).path)) for link in links]
    assert [path.resolve() for path in reached] == [folder / "config.yaml", folder / "events.jsonl"]
    assert all(not urlsplit(link).scheme and not link.startswith("/") for link in links)
    assert not set("#?\"'<> ") & set("".join(links))


def test_a_file_that_is_missing_is_not_linked(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", events=[], activations=[], gradients=[])
    (record,) = read_runs([str(folder)])[0]
    assert list(facts.files([record]).rows[0])[2] is None


def test_the_policy_forbids_everything_but_embedded_images(tmp_path: Path) -> None:
    text = write_page(tmp_path / "out", "x", []).read_text()
    assert "content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'\"" in text
    assert "<script" not in text


def test_a_long_list_is_closed(tmp_path: Path) -> None:
    notes = [f"note {i}" for i in range(40)]
    page = write_page(tmp_path / "out", "x", [Section(title="s", notes=notes)])
    assert "<summary>34 more</summary>" in page.read_text()
    assert all(f"note {i}" in Page(page).text for i in range(40))
