"""`bench card`: the model card of a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_meta.cli.options import RESULTS, Debug
from robustbench_meta.errors import BenchError


def card(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="A file such as results/checkpoints/HASH.safetensors.")
    ],
    results: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The results folder with its records. Default: the one it lies in, else ./results."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Where to.", show_default="stdout")
    ] = None,
    license: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Of the weights, such as mit or cc-by-4.0.", show_default="not told"),
    ] = None,
    debug: Debug = False,
) -> None:
    """Write the model card of a checkpoint: training recipe, metrics with intervals and flags, limitations."""
    if not checkpoint.is_file():
        raise BenchError(
            f"there is no file {checkpoint}; expected a checkpoint, such as results/checkpoints/HASH.safetensors"
        )
    home = checkpoint.resolve().parent.parent
    folder = results or (home if (home / "records").is_dir() else RESULTS)
    from robustbench_meta.cli.results import read_results

    store = read_results(folder).store
    from robustbench_meta.reporting.model_card import card as written
    from robustbench_meta.reporting.terminal.console import out as stdout
    from robustbench_meta.runtime.atomic_files import write_atomically, write_text

    text = written(checkpoint, store, license)
    if out is None:
        sys.stdout.write(text + "\n")
        return
    write_atomically(out, lambda part: write_text(part, text), kept=False)
    stdout().print(f"model card: {out}", markup=False, soft_wrap=True)


card.__doc__ = f"""{card.__doc__}

Markdown with the front matter that Hugging Face reads; all of it is from the checkpoint and its records.

[bold]Examples[/]
bench card results/checkpoints/HASH.safetensors
bench card model.safetensors results --out model.md --license mit
"""
