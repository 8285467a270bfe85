"""Resource plan of a run: `python -m launch plan CONFIG [key=value ...] [--gpus N] [--gpu CARD]`.

Parameters, FLOPs, memory per GPU by part for every ZeRO stage and micro-batch size, seconds a step with communication,
checkpoint sizes, and a recommended setting. Everything is computed in closed form, without a GPU: modeling's facts
provide the counts, memory.py the memory, step_time.py the time.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

from launch.plan.machine import Machine
from launch.plan.report import report
from train.config.batch import micro_batches
from train.config.errors import ConfigError
from train.config.facts.hardware import LINK_EFFICIENCY, NODE_NETWORK, card_lines, card_named
from train.config.load import load


class _CardOption(argparse.Action):
    """Stores the card of a name in any case; `list` prints all cards and exits, like --help."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[str] | None,
        option_string: str | None = None,
    ) -> None:
        if values == "list":
            print("\n".join(card_lines()))
            parser.exit()
        setattr(namespace, self.dest, values)


def main(arguments: Sequence[str]) -> int:
    """Run the command; return the exit code.

    Raises:
        ConfigError: The arguments or the configuration are invalid.
    """
    options = _parser().parse_intermixed_args(arguments)
    faults = list(_faults(options))
    try:
        config = load(options.config, options.overrides)
    except ConfigError as error:
        raise ConfigError([*error.faults, *faults]) from None
    card = card_named(options.gpu)
    if faults or card is None:
        raise ConfigError(faults)
    micro_batches(config, options.gpus)  # refuses a number that does not divide the global batch
    machine = Machine(
        gpus=options.gpus,
        card=card,
        memory_gib=card.memory_gib if options.gpu_memory is None else options.gpu_memory,
        gpus_per_node=options.gpus_per_node,
        mfu=options.mfu,
        node_bandwidth=options.node_bandwidth,
        network_bandwidth=options.network_bandwidth,
    )
    print("\n".join(report(config, machine)))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch plan",
        description="Estimate parameters, memory, time and file sizes of a run without a GPU, and recommend a setting.",
    )
    parser.add_argument("config", help="YAML file, e.g. configs/language_model/400m.yaml")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings to override, e.g. engine.zero_stage=2"
    )
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs (default: 1)")
    parser.add_argument(
        "--gpu",
        action=_CardOption,
        default="H100",
        metavar="CARD",
        help="type of GPU; `list` lists them (default: H100)",
    )
    parser.add_argument("--gpu-memory", type=float, metavar="GiB", help="memory per GPU (default: the card's)")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs per node (default: 8)")
    parser.add_argument(
        "--node-bandwidth",
        type=float,
        metavar="GB/s",
        help="what collectives reach per GPU and direction within a node (default: 80 %% of the card's link)",
    )
    parser.add_argument(
        "--network-bandwidth",
        type=float,
        metavar="GB/s",
        help=f"per node between nodes (default: {LINK_EFFICIENCY * NODE_NETWORK:g}, 80 %% of one 400 Gb/s port)",
    )
    parser.add_argument("--mfu", type=float, help="expected share of the peak FLOP/s as configured (default: a guess)")
    return parser


def _faults(options: argparse.Namespace) -> Iterator[str]:
    for name, number in (("--gpus", options.gpus), ("--gpus-per-node", options.gpus_per_node)):
        if number < 1:
            yield f"{name}: {number} is too small; write 1 or more"
    for name, number, unit, example in (
        ("--gpu-memory", options.gpu_memory, "GiB", 80),
        ("--node-bandwidth", options.node_bandwidth, "GB/s", 360),
        ("--network-bandwidth", options.network_bandwidth, "GB/s", 40),
    ):
        if number is not None and not 0 < number < 1e6:
            yield f"{name}: {number:g} {unit} is out of range; write a number like {example}"
    if options.mfu is not None and not 0 < options.mfu <= 1:
        yield f"--mfu: {options.mfu:g} is out of range; write a number above 0 and at most 1, like 0.4"
    if card_named(options.gpu) is None:
        yield "\n".join([f"--gpu: {options.gpu!r} is not listed; write one of these cards", *card_lines()])
