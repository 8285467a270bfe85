"""Making labels of all images, by several processes, in a folder that is published once it is complete."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from tqdm import tqdm

from modeling.segmentation.modeling_bap import BoxClassifier
from train.checkpoint.checkpoint import CheckpointReader
from train.config.commands.pseudo_labels import PseudoLabelConfig
from train.config.errors import ConfigError
from train.config.facts.run_layout import LABELS, LABELS_RECORD, read_json
from train.config.run import RunConfig
from train.config.tasks.box_segmentation import BoxClassificationConfig
from train.data.annotated.collection import AnnotatedImages, open_annotated
from train.data.annotated.label_folder import CRF, FORMAT, RETRIEVED, SHOWN
from train.export.model_folder import chosen_checkpoint, load_model
from train.pseudo_labels.labeler import ROWS, Labeler
from train.pseudo_labels.quality import quality, shares
from train.tasks import build_task

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_SETTINGS, _LOCK = "settings.json", "lock"
_AHEAD = 2  # images given to each worker at a time
_POLL_SECONDS = 0.2

Row = Mapping[str, Any]


class StoppedError(Exception):
    """A signal stopped the command; the text says how far it got."""


class WorkerDiedError(Exception):
    """A worker ended without a result, as when memory ran out."""


def make_labels(
    run: RunConfig, folder: Path, settings: PseudoLabelConfig, *, step: int | None, workers: int | None
) -> tuple[Path, dict[str, Any]]:
    """Label images, or go on with it, and publish the folder of labels.

    Args:
        run: The configuration of a run of box_classification.
        folder: Its folder.
        settings: How.
        step: Step of the checkpoint; None for the newest intact one.
        workers: Processes; None: one per core, one on a GPU.

    Returns:
        The folder of the labels, and the contents of its labels.json.

    Raises:
        ConfigError: There is no such checkpoint, images are missing or damaged, or there are labels of other settings.
        StoppedError: A signal arrived.
        WorkerDiedError: A worker died.
    """
    checkpoint = chosen_checkpoint(folder, step)
    out = folder / LABELS / checkpoint.name
    if (out / LABELS_RECORD).is_file():
        return out, _same_labels(out, settings)
    images = _images(run, settings)
    partial = out.with_name(f"{out.name}.partial")
    with _locked(partial, settings), _signals() as stop:
        _label_all(_Work(run, folder, checkpoint, settings, partial), images, workers=workers, stop=stop)
        facts = _facts(run, checkpoint, settings, images, list(_rows(partial, images)))
        _publish(partial, out, facts)
    return out, facts


def _same_labels(out: Path, settings: PseudoLabelConfig) -> dict[str, Any]:
    """Return what is known of finished labels.

    Raises:
        ConfigError: They were made with other settings.
    """
    facts = dict(read_json(out / LABELS_RECORD) or {})
    _refuse_other_settings(out, facts.get("settings"), settings)
    _tidy(out)
    return facts


def _refuse_other_settings(place: Path, made_with: object, settings: PseudoLabelConfig) -> None:
    asked = json.loads(json.dumps(settings.as_facts()))
    if made_with == asked:
        return
    differ = [key for key in asked if not isinstance(made_with, Mapping) or made_with.get(key) != asked[key]]
    raise ConfigError(
        [
            f"{place}: holds labels made with another {' and '.join(differ)} than now; use the same, or move or delete "
            f"that folder"
        ]
    )


def _images(run: RunConfig, settings: PseudoLabelConfig) -> AnnotatedImages:
    """Return the images to label, whose names are different.

    Raises:
        ConfigError: Files are missing or do not go together, or two images have one name.
    """
    assert isinstance(run.task, BoxClassificationConfig)
    data, given = run.task.data, settings.sources
    images = open_annotated(
        data.sources if given is None else given,
        classes=data.classes,
        path="task.data.sources" if given is None else "sources",
    )
    faults = images.faults(decode=False)
    faults += [f"two images are named {name}, so their labels would be one file" for name in images.repeated_names()]
    if faults:
        raise ConfigError(faults)
    return images


# ---------------------------------------------------------------------------------------------------------- the folder


@contextmanager
def _locked(partial: Path, settings: PseudoLabelConfig) -> Iterator[None]:
    """Hold the folder in which labels are made, for this command alone.

    Raises:
        ConfigError: Another command holds it, or it has labels of other settings.
    """
    for name in (CRF, RETRIEVED, SHOWN, ROWS):
        (partial / name).mkdir(parents=True, exist_ok=True)
    with (partial / _LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError([f"{partial}: another command is making these labels; wait for it"]) from None
        record = partial / _SETTINGS
        if record.is_file():
            _refuse_other_settings(partial, read_json(record), settings)
        else:
            record.write_text(json.dumps(settings.as_facts()))
        yield


def _publish(partial: Path, out: Path, facts: Mapping[str, Any]) -> None:
    """Write labels.json and rename the folder; what only the making needed goes last, and is no part of the labels."""
    (partial / LABELS_RECORD).write_text(json.dumps(facts, indent=1) + "\n")
    partial.rename(out)
    _tidy(out)


def _tidy(out: Path) -> None:
    shutil.rmtree(out / ROWS, ignore_errors=True)
    for name in (_SETTINGS, _LOCK):
        (out / name).unlink(missing_ok=True)


def _rows(partial: Path, images: AnnotatedImages) -> Iterator[Row]:
    """Yield the rows of all images."""
    for index in range(len(images)):
        row = _row(partial, images, index)
        assert row is not None, "all images are labeled"
        yield row


def _row(partial: Path, images: AnnotatedImages, index: int) -> Row | None:
    """Return the row of an image that is labeled, None if it is not or has changed since."""
    row = read_json(partial / ROWS / f"{images.name(index)}.json")
    return row if row is not None and row["identity"] == images.identity(index) else None


def _facts(
    run: RunConfig, checkpoint: Path, settings: PseudoLabelConfig, images: AnnotatedImages, rows: Sequence[Row]
) -> dict[str, Any]:
    """Return the contents of labels.json."""
    pixels = sum(sum(row["pixels"]) for row in rows)
    return {
        "format": FORMAT,
        "run": run.name,
        "step": CheckpointReader(checkpoint).progress.step,
        "settings": settings.as_facts(),
        "classes": images.classes,
        "quality": quality(rows, images.classes),
        "agreement": sum(row["agreeing"] for row in rows) / max(1, pixels),
        "class_shares": {CRF: shares(rows, images.classes)},
        "vanished": [{"image": row["name"], **box} for row in rows for box in row["vanished"]],
        "seconds_per_image": sum(row["seconds"] for row in rows) / len(rows),
        "images": {row["name"]: row["identity"] for row in rows},
    }


# ------------------------------------------------------------------------------------------------------- the processes


class _Stop:
    """Whether a signal has arrived."""

    def __init__(self) -> None:
        self.name: str | None = None

    def handle(self, number: int, _: object) -> None:
        """Note a signal."""
        self.name = signal.Signals(number).name


@contextmanager
def _signals() -> Iterator[_Stop]:
    stop = _Stop()
    before = {number: signal.signal(number, stop.handle) for number in _SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Work:
    """What a worker needs: plain values, which another process can receive."""

    def __init__(
        self, run: RunConfig, folder: Path, checkpoint: Path, settings: PseudoLabelConfig, partial: Path
    ) -> None:
        self.run, self.folder, self.checkpoint, self.settings, self.partial = run, folder, checkpoint, settings, partial

    def labeler(self) -> Labeler:
        """Load the model and open the images."""
        model = load_model(build_task(self.run), self.checkpoint)
        assert isinstance(model, BoxClassifier)
        return Labeler(model, _images(self.run, self.settings), self.settings, self.partial)


def _label_all(work: _Work, images: AnnotatedImages, *, workers: int | None, stop: _Stop) -> None:
    """Label the images that are not labeled yet."""
    left = [index for index in range(len(images)) if _row(work.partial, images, index) is None]
    cores = len(os.sched_getaffinity(0))
    workers = min(workers or (1 if torch.cuda.is_available() else cores), max(1, len(left)))
    done, faults = len(images) - len(left), list[str]()
    bar = tqdm(total=len(images), initial=done, desc="labeling", unit="image", disable=not sys.stderr.isatty())
    with bar:
        for of_image in _labeled(work, left, workers=workers, stop=stop):
            faults += of_image
            done += not of_image
            bar.update()
    if stop.name is not None:
        raise StoppedError(f"{stop.name} after {done} of {len(images)} images")
    if faults:
        raise ConfigError(faults)


def _labeled(work: _Work, left: Sequence[int], *, workers: int, stop: _Stop) -> Iterator[list[str]]:
    """Yield the faults of each image, until a signal arrives.

    Raises:
        WorkerDiedError: A worker died.
    """
    waiting, running = iter(left), set[Future[list[str]]]()
    context = multiprocessing.get_context("spawn")  # a forked child could not use a GPU, or OpenMP's threads
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(work,)) as pool:
        try:
            while stop.name is None:
                running |= {pool.submit(_label, i) for i in islice(waiting, workers * _AHEAD - len(running))}
                if not running:
                    return
                ended, running = wait(running, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in ended)
            for future in running:
                future.cancel()
        except BrokenProcessPool:
            if stop.name is not None:  # the signal reached a worker before it could be told to leave it to the command
                return
            raise WorkerDiedError("a worker ended without a result (out of memory?)") from None


_labeler: Labeler | None = None  # of a worker


def _begin(work: _Work) -> None:
    """Set up a worker. Its one thread makes labels that do not depend on how many workers there are."""
    global _labeler
    Thread(target=_end_with_parent, daemon=True).start()
    for number in _SIGNALS:  # the command itself answers them, once its workers have finished their images
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    _labeler = work.labeler()


def _end_with_parent() -> None:
    """Exit once the command is gone, however it ended: the pool's own queue would never tell."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def _label(index: int) -> list[str]:
    """Label an image in a worker; return its faults."""
    assert _labeler is not None
    try:
        _labeler.label(index)
    except ConfigError as error:  # does not survive the way between processes
        return error.faults
    return []
