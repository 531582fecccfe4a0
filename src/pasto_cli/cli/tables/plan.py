"""A plan: the model, memory by phase and device, time, disk, and what would make it fit."""

from rich.markup import escape
from rich.table import Table

from pasto_cli.base.format import format_bytes, format_seconds
from pasto_cli.cli.console import out
from pasto_cli.cli.tables.common import say
from pasto_cli.core.records.plan import Plan, Remedy

SHOWN = 2 * 2**20
"""Parts of a phase that are named: of more than this many bytes."""


def show_plan(plan: Plan) -> None:
    """Everything that a plan says."""
    base, adapter = plan.base, plan.adapter
    say(
        f"{base.source}: {base.architecture}, {base.layers} layers of width {base.width}, "
        f"{base.parameters:,} parameters, vocabulary {base.vocabulary:,}, {base.writers} writers "
        f"(from {base.origin})"
    )
    say(
        f"adapter: {adapter.modules} modules, {adapter.parameters:,} trained numbers, "
        f"{format_bytes(adapter.file_bytes)}"
    )
    say(
        f"training: {plan.steps:,} steps at most on {plan.pairs} pairs, {plan.tokens_per_step:,} "
        f"distinct tokens per step, each at +1 and at -1"
    )
    out.print(_memory(plan))
    if plan.duration is not None:
        time = plan.duration
        say(
            f"time: about {format_seconds(time.total)}, {format_seconds(time.step)} per step "
            f"({time.source})"
        )
    disk = ", ".join(f"{name} {format_bytes(size)}" for name, size in plan.disk.items())
    say(f"disk: {disk}; to download: {format_bytes(base.download)}")
    for device in plan.devices:
        if device.fits is False:
            say(
                f"does not fit on {device.name}: {format_bytes(device.peak)} of "
                f"{format_bytes(device.memory)}"
            )
    if plan.remedies:
        out.print(_remedies(plan.remedies))
    for what in plan.unknown:
        say(f"not known: {what}")


def _memory(plan: Plan) -> Table:
    """One row per phase, one column per device, and what the first device's phase consists of."""
    table = Table()
    table.add_column("memory")
    for device in plan.devices:
        table.add_column(escape(f"{device.name}, {device.dtype}"), justify="right")
    which = "of that" if len(plan.devices) == 1 else f"of that, {plan.devices[0].name}"
    table.add_column(escape(which), overflow="fold")
    for phases in zip(*(device.phases for device in plan.devices), strict=True):
        parts = sorted(phases[0].of.items(), key=lambda part: -part[1])
        of = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts if size > SHOWN)
        table.add_row(phases[0].name, *(format_bytes(phase.bytes) for phase in phases), of)
    table.add_section()
    table.add_row("peak", *(format_bytes(device.peak) for device in plan.devices), "")
    table.add_row("there is", *(format_bytes(device.memory) for device in plan.devices), "")
    return table


def _remedies(remedies: list[Remedy]) -> Table:
    table = Table()
    table.add_column("would need less", overflow="fold")
    table.add_column("peak", justify="right")
    table.add_column("fits")
    table.add_column("at the cost", overflow="fold")
    for remedy in remedies:
        settings = " ".join(f"--set {key}" for key in remedy.settings)
        fits = "yes" if remedy.fits else "no"
        table.add_row(escape(settings), format_bytes(remedy.peak), fits, escape(remedy.costs))
    return table
