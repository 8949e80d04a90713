"""Shows measurements: as tables on screen, and as the block of figures in benchmarks/speed.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from benchmarks.outcomes import Machine, Measurements, Outcome, Timed

BEGIN, END = "<!-- speed:begin -->", "<!-- speed:end -->"
HEADINGS = ("", "median", "lowest – highest", "ours / it", "of matmul", "differs")


def duration(seconds: float) -> str:
    """Three digits with a unit: 1.23 ms, 45.6 s."""
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}" if seconds * factor < 1000 else f"{seconds * factor:.0f} {unit}"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def row(outcome: Outcome, timed: Timed) -> tuple[str, ...]:
    """One contestant's cells, under HEADINGS."""
    ours, others = outcome.ours, timed.role in {"peer", "reference"}
    ratio = ""
    if ours is not None and others and len(outcome.timed) > 1 and outcome.group != "grid":
        low, high = outcome.spread(timed)
        ratio = f"{outcome.ratio(timed):.2f} ({low:.2f}–{high:.2f})"
        ratio = ratio if timed.agrees else "another result"
    share = outcome.share(timed) if timed.role != "limit" else None
    return (
        timed.name,
        duration(timed.median),
        _between(timed.seconds),
        ratio,
        "" if share is None else f"{share:.0%}",
        "" if timed.difference is None else f"{timed.difference:.0e}",
    )


def _between(seconds: Sequence[float]) -> str:
    return f"{duration(min(seconds))} – {duration(max(seconds))}" if len(seconds) > 1 else ""


def title(outcome: Outcome) -> str:
    """The case, what it is, and its work."""
    work = f" · {outcome.gflop:.3g} GFLOP" if outcome.gflop is not None else ""
    rate = f" · matrix product {outcome.matmul_rate:.0f} GFLOP/s" if outcome.matmul_rate is not None else ""
    unit = f" · times are of one {outcome.unit}" if outcome.unit else ""
    return f"{outcome.title}{work}{rate}{unit}"


def remarks(outcome: Outcome) -> list[str]:
    """What does not fit into the table."""
    found = [f"{name}: {value:g}" if isinstance(value, float) else f"{name}: {value}"
             for name, value in outcome.figures.items()]  # fmt: skip
    exact = [timed.difference_float64 for timed in outcome.timed if timed.difference_float64 is not None]
    if exact:
        found.append(f"two tasks in float64 differ by {max(exact):.0e} at most")
    return [*found, *outcome.notes]


def machine_lines(measured: Measurements) -> list[str]:
    """The machine, threads and versions."""
    machine: Machine = measured.machine
    where = [machine.device] if machine.device == machine.cpu else [machine.device, f"host {machine.cpu}"]
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return [
        f"{', '.join(where)}; {machine.threads} threads on {machine.cores} cores; {versions}.",
        f"A float32 matrix product reaches {machine.matmul_gflops:.0f} GFLOP/s here.",
        *(["Quick: tiny sizes and few repetitions; these figures mean nothing."] if measured.quick else []),
    ]


# -- on screen -------------------------------------------------------------------------------------


def show(measured: Measurements, console: Console) -> None:
    """Everything."""
    show_machine(measured, console)
    for outcome in measured.outcomes:
        console.print(on_screen(outcome, console.width))
    show_goals(measured.outcomes, console)


def show_machine(measured: Measurements, console: Console) -> None:
    """The machine, threads and versions."""
    for text in machine_lines(measured):
        console.print(text, markup=False)
    console.print()


def on_screen(outcome: Outcome, width: int) -> Group:
    """One case: a heading, its table, its remarks."""
    parts: list[Text | Table] = [Text.assemble((outcome.case, "bold"), f"  {title(outcome)}")]
    if outcome.skipped:
        parts.append(Text(f"skipped: {outcome.skipped}", style="yellow"))
    narrow = width < 100
    if outcome.timed:
        parts.append(
            _table([row(outcome, timed) for timed in outcome.timed], HEADINGS, leave_out=2 if narrow else None)
        )
    if outcome.points:
        parts.append(_table(point_rows(outcome), (outcome.axis, "seconds", "peak MiB", "of it the work's")))
    parts.extend(Text(remark, style="dim") for remark in remarks(outcome))
    return Group(*parts, Text())


def point_rows(outcome: Outcome) -> list[tuple[str, ...]]:
    """The points of a scaling curve."""
    found: list[tuple[str, ...]] = []
    for point in outcome.points:
        own = "" if point.peak_mib is None or point.base_mib is None else f"{point.peak_mib - point.base_mib:.0f}"
        peak = "" if point.peak_mib is None else f"{point.peak_mib:.0f}"
        found.append((str(point.value), duration(point.seconds), peak, own))
    return found


def _table(rows: Iterable[Sequence[str]], headings: Sequence[str], leave_out: int | None = None) -> Table:
    """The narrow one leaves a column out."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, show_header=True)
    kept = [place for place in range(len(headings)) if place != leave_out]
    filled = list(rows)
    kept = [place for place in kept if place == 0 or any(cells[place] for cells in filled)]
    for place in kept:
        table.add_column(headings[place], justify="left" if place == 0 else "right", no_wrap=True)
    for cells in filled:
        table.add_row(*(cells[place] for place in kept))
    return table


def goal_rows(outcomes: Iterable[Outcome]) -> list[tuple[str, str, str, str, str]]:
    """Case, what was promised, what it is, the limit, and whether it is met."""
    return [
        (
            outcome.case, goal.what, f"{goal.value:.3g}", f"{'≤' if goal.at_most else '≥'} {goal.limit:g}",
            "yes" if goal.met else "no",
        )
        for outcome in outcomes
        for goal in outcome.goals
    ]  # fmt: skip


def show_goals(outcomes: Sequence[Outcome], console: Console) -> None:
    """What was promised, and what it is."""
    rows = goal_rows(outcomes)
    if not rows:
        return
    table = Table("case", "goal", box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for heading in ("measured", "limit", "met"):
        table.add_column(heading, justify="right", no_wrap=True)
    for cells in rows:
        table.add_row(*cells[:4], Text(cells[4], style="green" if cells[4] == "yes" else "red"))
    console.print(table)


# -- in the docs -----------------------------------------------------------------------------------


def in_markdown(runs: Sequence[Measurements]) -> str:
    """The block between the marks: each run with its machine, its goals, and all its cases."""
    lines: list[str] = []
    for measured in runs:
        lines += [f"### {measured.machine.device}", "", *machine_lines(measured), ""]
        goals = goal_rows(measured.outcomes)
        if goals:
            lines += [*_markdown_table(("case", "goal", "measured", "limit", "met"), goals), ""]
        for outcome in measured.outcomes:
            lines += [*_case_in_markdown(outcome), ""]
    return "\n".join(lines).strip()


def _case_in_markdown(outcome: Outcome) -> list[str]:
    lines = [f"**{outcome.case}**: {title(outcome)}", ""]
    if outcome.skipped:
        return [*lines, f"Skipped: {outcome.skipped}."]
    if outcome.timed:
        rows = [row(outcome, timed) for timed in outcome.timed if timed.role != "limit"]
        kept = [place for place in range(len(HEADINGS)) if place < 2 or any(cells[place] for cells in rows)]
        lines += _markdown_table(
            [HEADINGS[place] for place in kept], [tuple(cells[place] for place in kept) for cells in rows]
        )
    if outcome.points:
        lines += _markdown_table((outcome.axis, "time", "peak MiB", "of it the work's"), point_rows(outcome))
    told = "; ".join(remarks(outcome))
    return [*lines, "", f"{told[0].upper()}{told[1:]}."] if told else lines


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    ruler = ["---", *("---:" for _ in headings[1:])]
    return [f"| {' | '.join(cells)} |" for cells in (headings, ruler, *rows)]


def update_docs(path: Path, runs: Sequence[Measurements]) -> None:
    """Put the block between the marks in a Markdown file; at its end, under a heading, if it has none.

    Raises:
        ValueError: one mark without the other.
    """
    text = path.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{in_markdown(runs)}\n{END}"
    if BEGIN not in text and END not in text:
        text = f"{text.rstrip()}\n\n## Speed\n\n    make bench\n\n{block}\n"
    else:
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ValueError(f"{path}: '{BEGIN}' and '{END}' must both be there, in this order")
        text = before + block + after
    path.write_text(text, encoding="utf-8")
