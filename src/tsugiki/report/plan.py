"""A plan as a table and lines for the terminal."""

from tsugiki.io.formatting import format_duration, format_gigabytes, format_size
from tsugiki.language import _, listed
from tsugiki.report.table import Table
from tsugiki.training.run.plan import RANGE, Plan


def plan_table(plan: Plan) -> Table:
    """Return headers and rows: one row for each option, the chosen one first."""
    headers = [_("base"), _("recomputed"), _("rows at once"), _("peak memory"), _("a step"), _("the run"), ""]
    rows = []
    for number, option in enumerate(plan.options):
        state = _("fits") if option.fits else _("does not fit")
        chosen = number == 0 and option.fits
        rows.append(
            [
                option.base_dtype,
                _("{count} of {blocks}", count=option.recomputed_blocks, blocks=plan.blocks),
                str(option.micro_batch_size),
                format_gigabytes(option.peak_memory),
                _step(option.step_seconds),
                "–" if option.seconds is None else _range(option.seconds),
                _("{state}, chosen", state=state) if chosen else state,
            ]
        )
    return Table(headers, rows)


def plan_lines(plan: Plan) -> list[str]:
    """Return lines about the model, the machine, the steps and the parts of the memory of the table's first row."""
    size = _("size unknown") if plan.file_bytes is None else format_size(plan.file_bytes)
    where = _("on this machine") if plan.is_here else _("to download")
    free = _("unknown") if plan.available is None else format_gigabytes(plan.available)
    lines = [
        _(
            "{model}: {parameters:,} parameters, {trainable:,} of them train; files: {size}, {where}",
            model=plan.model,
            parameters=plan.parameters,
            trainable=plan.trainable,
            size=size,
            where=where,
        ),
        _(
            "{machine}: {memory}, {disk} of free disk",
            machine=_("another machine") if plan.is_elsewhere else _("this machine"),
            memory=(
                _("{free} of memory for the run")
                if plan.device == "cpu"
                else _("{free} of memory of its accelerator ({device}) for the run")
            ).format(free=free, device=plan.device),
            disk=format_gigabytes(plan.free_disk),
        ),
    ]
    if plan.head:
        message = _(
            "with tokens in the text that the base has never written, the output head trains, too: {count:,}",
            count=plan.trainable + plan.head,
        )
        lines.insert(1, message)
    if plan.steps is not None:
        message = _(
            "the run: {steps:,} steps of {rows} rows of {tokens} tokens",
            steps=plan.steps,
            rows=plan.batch_size,
            tokens=plan.tokens,
        )
        lines.append(message)
    names = {
        "process": _("process"),
        "base": _("base"),
        "adapter": _("adapter"),
        "gradients": _("gradients"),
        "optimizer": _("optimiser"),
        "activations": _("activations"),
        "loss": _("loss"),
        "loading": _("while loading"),
    }
    parts = [f"{names[name]} {format_gigabytes(size)}" for name, size in plan.parts.items()]
    lines.append(_("memory of the first row: {parts}", parts=listed(parts)))
    return lines


def _step(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.2f} s" if seconds < 10 else format_duration(seconds)


def _range(seconds: float) -> str:
    """Format the time of a run as a range."""
    low, high = (format_duration(seconds * factor) for factor in RANGE)
    return low if low == high else f"{low} – {high}"
