"""`bench data`: the data sets on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_meta.cli.options import DataRoot, Debug, Json
from robustbench_meta.errors import BenchError

if TYPE_CHECKING:
    from robustbench_meta.experiment.data_library import Row

DOWNLOADS = ("omniglot", "cifar100")
_MADE_OF = {"cifar-fs": "cifar100", "fc100": "cifar100"}

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", help="See, add and download data sets.")


@app.command("list")
def list_data(data_root: DataRoot = None, json: Json = False, debug: Debug = False) -> None:
    """List the data sets that are there, what to type for each, and where it lies."""
    if json:
        from robustbench_meta.cli import json_documents

        json_documents.print_data(data_root)
        return
    from robustbench_meta.experiment.data_library import list_data as rows

    _show(rows(data_root))


@app.command()
def add(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="omniglot, cifar100, cifar-fs, fc100, mini-imagenet, tiered-imagenet, cub, or a name of your own.",
            show_default=False,
        ),
    ],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A folder, or a zip or tar with such a folder.", show_default=False)
    ],
    data_root: DataRoot = None,
    debug: Debug = False,
) -> None:
    """Copy images, or a download of Omniglot or CIFAR-100, below the data root, after checking that they load.

    Images lie in a folder a class, or beside CSVs of the splits: see bench list datasets image-folder.
    Or three pickles, as of miniImageNet, CIFAR-FS and FC100: see bench list datasets pickled.
    Under the name of a known data set, its classes are split as published.

    [bold]Examples[/]
    bench data add birds ~/Downloads/birds.zip
    bench data add mini-imagenet ~/Downloads/miniImageNet
    bench data add omniglot ~/Downloads
    """
    from robustbench_meta.experiment.data_library import add as add_data

    _show([add_data(name, path, data_root)])


@app.command()
def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"{', '.join(DOWNLOADS)}.", show_default=False)],
    data_root: DataRoot = None,
    debug: Debug = False,
) -> None:
    """Download a data set from its official place, checked by MD5.

    CIFAR-FS and FC100 are made of cifar100.

    [bold]Examples[/]
    bench data download omniglot
    bench data download cifar100
    """
    name = _MADE_OF.get(name, name)
    if name not in DOWNLOADS:
        raise BenchError(
            f"'{name}' cannot be downloaded; what can: {', '.join(DOWNLOADS)}. Add others: `bench data add`"
        )
    from robustbench_meta.experiment.data_library import download_cifar100, download_omniglot

    with _bar() as bar:
        rows = [download_omniglot(data_root, bar)] if name == "omniglot" else download_cifar100(data_root, bar)
    _show(rows)


def _show(rows: list[Row]) -> None:
    """A paragraph a data set: what to type, whether it is there, how large, and where."""
    from rich.filesize import decimal
    from rich.padding import Padding
    from rich.text import Text

    from robustbench_meta.reporting.terminal.console import out

    console = out()
    for row in rows:
        size = f", {decimal(row.bytes)}" if row.bytes else ""
        style = "yellow" if row.state in {"missing", "incomplete", "damaged", "needs options"} else "green"
        console.print(Text.assemble((f"--dataset {row.dataset}", "bold cyan"), "  ", (row.state, style), size))
        console.print(Padding(Text(row.where, style="dim", overflow="fold"), (0, 0, 0, 4)))


class _Bar:
    """A bar as pooch drives it: one file after another."""

    total = 0

    def __init__(self, progress: Any) -> None:
        self._progress = progress
        self._task: Any = None

    def update(self, increment: int) -> None:
        """So many bytes more."""
        if self._task is None:
            self._task = self._progress.add_task("download", total=self.total or None)
        self._progress.update(self._task, advance=increment, total=self.total or None)

    def reset(self) -> None:
        """Start over."""
        if self._task is not None:
            self._progress.reset(self._task)

    def close(self) -> None:
        """Done with one file."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None


@contextmanager
def _bar() -> Iterator[_Bar | None]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from robustbench_meta.reporting.terminal.console import err

    if not err().is_terminal:
        yield None
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as progress:
        yield _Bar(progress)
