"""`bench zoo`, `bench verify`: checkpoints that come with the package, and whether their rows are true."""

from __future__ import annotations

from typing import Annotated

import typer

from robustbench_meta.cli.options import DataRoot, Debug, Json, NoLocalPlugins, Plugins


def zoo(json: Json = False, debug: Debug = False) -> None:
    """List the published checkpoints, with their accuracies."""
    from rich.table import Table
    from rich.text import Text

    from robustbench_meta.cli.json_output import alone_on_stdout, print_document
    from robustbench_meta.reporting.terminal.console import out
    from robustbench_meta.zoo import published, stated_rows

    found = {}
    for name in published():
        found[name] = {row["attack"]: float(row["robust_accuracy"]) for row in stated_rows(name)}
    if json:
        with alone_on_stdout() as stream:
            print_document(stream, checkpoints=found)
        return
    attacks = list(dict.fromkeys(attack for each in found.values() for attack in each))
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("checkpoint", no_wrap=True)
    for attack in attacks:
        head = "clean" if attack == "none" else attack.replace(":", ":\n").replace(",", ",\n")
        table.add_column(head, justify="right", vertical="bottom")
    for name, accuracies in sorted(found.items(), key=lambda item: -min(item[1].values())):
        shown = (f"{100 * accuracies[attack]:.1f}" if attack in accuracies else "" for attack in attacks)
        table.add_row(name, *map(Text, shown))
    out().print(table)
    out().print(Text(
        "Accuracy in %, without attack and under attack. In Python: robustbench_meta.load_model(NAME). "
        "Evaluate one again: bench verify NAME", style="dim",
    ))  # fmt: skip


def verify_checkpoint(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="NAME|FILE", help="Of `bench zoo`, or such as results/checkpoints/HASH.safetensors."),
    ],
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:0, …")] = "auto",
    data_root: DataRoot = None,
    plugins: Plugins = None,
    no_local_plugins: NoLocalPlugins = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Evaluate a checkpoint again, without training, and compare with the rows of its leaderboard.

    The rows are those of the published tables, or of leaderboard.csv in the results folder of the file.

    It exits with 1 if a row is not what is found.

    [bold]Examples[/]
    bench verify glyphs/5w1s/adml
    bench verify results/checkpoints/0123456789abcdef.safetensors
    """
    from rich.table import Table
    from rich.text import Text

    from robustbench_meta.cli.json_output import alone_on_stdout, print_document
    from robustbench_meta.reporting.terminal.console import out, print_error, working
    from robustbench_meta.zoo import verified_rows

    with working("evaluating …"):
        rows = verified_rows(
            checkpoint, device=device, data_root=data_root, plugins=plugins, local_plugins=not no_local_plugins
        )  # fmt: skip
    different = [row for row in rows if row.verdict == "different"]
    if json:
        with alone_on_stdout() as stream:
            print_document(stream, rows=[row._asdict() for row in rows])
    else:
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for name in ("attack", "eps", "support/query", "stated", "found", ""):
            table.add_column(name, justify="right" if name in {"eps", "stated", "found"} else "left", overflow="fold")
        for row in rows:
            style = {"different": "red", "not verified": "yellow"}.get(row.verdict, "green")
            numbers = ("–" if each is None else f"{100 * each:.2f}" for each in (row.stated, row.found))
            table.add_row(*map(Text, (row.attack, row.eps, row.scenario, *numbers)), Text(row.verdict, style=style))
        out().print(table)
    if different:
        print_error(f"{len(different)} of {len(rows)} rows are not what {checkpoint} gives here")
        raise typer.Exit(1)
