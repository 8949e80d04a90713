"""Work on other machines: what is sent there to make the same grid, and the process that works on it there.

No file system is shared: data, local plugins and checkpoints travel, and so do the results.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

from robustbench_meta import keeping
from robustbench_meta.cores import computing_alone
from robustbench_meta.devices import choose_device
from robustbench_meta.discovery import sources
from robustbench_meta.errors import BenchError, DeviceLostError
from robustbench_meta.executors import Recipe
from robustbench_meta.executors.speech import Line, Paced, muted, speaking_through
from robustbench_meta.grid import Grid, prepare
from robustbench_meta.lanes import Lanes
from robustbench_meta.registry import core_code, load_registry
from robustbench_meta.shelf import Sent
from robustbench_meta.spec import PluginSpec
from robustbench_meta.stopping import Stop, Stopped
from robustbench_meta.surrogates import is_file
from robustbench_meta.tasks import ImageBank, Splits
from robustbench_meta.work import Workplace, do_task

MOST_DATA = 2 * 2**30
"""The bytes of images up to which a data set is sent along."""
MOST_CODE = 10 * 2**20
"""The bytes of local plugins that are sent at most."""
DISTRIBUTIONS = ("robustbench_meta", "torch")
"""Those that must be the same on all machines, whatever plugins say of others that they need."""


@dataclass(frozen=True)
class Bank:
    """A split of a data set but for its images. Plain data."""

    name: str
    counts: list[int]
    classes: list[str]
    fingerprint: str
    copies: str
    shape: tuple[int, ...]
    """Of the images, uint8."""


@dataclass(frozen=True)
class Parcel:
    """All that another machine needs to make the grid of a run, but for the images. Plain data."""

    recipe: Recipe
    code: dict[str, bytes]
    """The Python files of the local plugins, by their path in the folder."""
    surrogate: bytes | None
    """The checkpoint's file that `--surrogate` names."""
    banks: tuple[Bank, ...]
    """Of train, validation and test; none: the data are loaded there."""
    identity: dict[str, str]
    """What makes the numbers, by what it is: see `identity_of`."""
    keys: frozenset[str]
    """Of the cells."""
    settings: dict[str, str]
    """Of the environment, what is to be the same there."""


def pack(recipe: Recipe, grid: Grid) -> tuple[Parcel, list[np.ndarray]]:
    """What to send of a run, and the images of its splits; none if they are too many, or no images.

    Raises:
        BenchError: the local plugins are too large, or cannot be read.
    """
    banks = [source for source in grid.splits if isinstance(source, ImageBank)]
    arrays = [np.ascontiguousarray(bank.images.cpu().numpy()) for bank in banks]
    if len(banks) < len(grid.splits) or sum(array.nbytes for array in arrays) > MOST_DATA:
        banks, arrays = [], []
    named = grid.run.surrogate
    parcel = Parcel(
        recipe,
        _code(recipe),
        Path(named).read_bytes() if named is not None and is_file(named) else None,
        tuple(
            Bank(bank.name, bank.counts.tolist(), list(bank.classes), bank.fingerprint, bank.copies, tuple(array.shape))
            for bank, array in zip(banks, arrays, strict=True)
        ),
        identity_of(grid),
        frozenset(cell.key for cell in grid.cells),
        {name: os.environ[name] for name in (keeping.SECONDS,) if name in os.environ},
    )
    return parcel, arrays


def unpack(parcel: Parcel, arrays: Sequence[np.ndarray], folder: Path) -> Grid:
    """The grid of a run, made on another machine than where it was packed.

    Args:
        parcel: what was sent.
        arrays: the images of its banks.
        folder: an empty one of this machine, for as long as the grid is in use.

    Raises:
        BenchError: something is other here than there, and what.
    """
    os.environ.update(parcel.settings)
    run, plugins = parcel.recipe.run, folder / "plugins"
    for name, text in parcel.code.items():
        path = plugins / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    if parcel.surrogate is not None:
        named = folder / f"surrogate{Path(run.surrogate or '').suffix}"
        named.write_bytes(parcel.surrogate)
        run = run.model_copy(update={"surrogate": str(named)})
    splits = [
        ImageBank(
            bank.name,
            torch.from_numpy(array.reshape(bank.shape)),
            bank.counts,
            bank.classes,
            bank.fingerprint,
            bank.copies,
        )
        for bank, array in zip(parcel.banks, arrays, strict=True)
    ]
    registry = load_registry(plugins if parcel.code else None, local=bool(parcel.code))
    grid = prepare(run, registry, parcel.recipe.data_root, splits=Splits(*splits) if splits else None)
    _check_same(parcel, grid)
    return grid


def identity_of(grid: Grid) -> dict[str, str]:
    """What makes the numbers of a grid, by what it is: the code of the core and of each plugin, and the data."""
    found = {f"the code of {stage}": core_code(stage) for stage in ("training", "evaluation")}
    found["the data"] = "+".join(source.fingerprint for source in grid.splits)
    plugins: list[tuple[str, PluginSpec | None]] = []
    for cell in grid.cells:
        spec = cell.spec.training
        plugins += [("dataset", spec.dataset), ("backbone", spec.backbone), ("learner", spec.learner)]
        plugins += [("backbone", spec.surrogate), ("attack", spec.attack.plugin if spec.attack else None)]
        plugins.append(("attack", cell.spec.attack.plugin))
        if cell.spec.surrogate is not None:
            plugins += [("learner", cell.spec.surrogate.learner), ("backbone", cell.spec.surrogate.backbone)]
    return found | {f"{kind} '{plugin.name}'": plugin.code for kind, plugin in plugins if plugin is not None}


def installed() -> dict[str, str]:
    """Python, and the distributions that must be the same on all machines."""
    found = {"python": f"{sys.version_info.major}.{sys.version_info.minor}"}
    for name in DISTRIBUTIONS:
        try:
            found[name] = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def unlike(expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """What of it is other there than here, in words; None if nothing is."""
    other = [
        f"{name}: {found.get(name, 'nothing')} there, {value} here"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    return "; ".join(other) or None


def _check_same(parcel: Parcel, grid: Grid) -> None:
    """Raise unless this grid is that which was packed."""
    reason = unlike(parcel.identity, identity_of(grid))
    if reason is not None:
        raise BenchError(f"{reason}: install the same robustbench_meta and plugins, and use the same data")
    if not parcel.keys <= {cell.key for cell in grid.cells}:
        raise BenchError("it makes other cells of this run there than here: install the same plugins and libraries")


def _code(recipe: Recipe) -> dict[str, bytes]:
    """The Python files of the local plugins, by their path in the folder."""
    files: dict[str, bytes] = {}
    found = sources(recipe.plugins, local=recipe.local_plugins)
    for path in [Path(source.where) for source in found if source.kind == "local"]:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path, *sorted(path.parent.glob("_*.py"))]:
            files[file.relative_to(path.parent).as_posix()] = file.read_bytes()
    size = sum(map(len, files.values()))
    if size > MOST_CODE:
        raise BenchError(
            f"the local plugins hold {size / 2**20:.0f} MiB of Python files; at most {MOST_CODE >> 20} MiB are sent to "
            "other machines: name a folder that holds the plugins only (--plugins), or install them as a distribution"
        )
    return files


# -- there -----------------------------------------------------------------------------------------


class AskedBook:
    """The driver's book of plans, so that all workers use the plans of a run on its machine."""

    def __init__(self, line: Line) -> None:
        self._line = line

    def read(self, name: str) -> str | None:
        """See `Book.read`."""
        self._line.tell("plan_wanted", name=name)
        text: str | None = self._line.next()
        return text

    def settle(self, name: str, text: str) -> str:
        """See `Book.settle`."""
        self._line.tell("plan_found", name=name, text=text)
        agreed: str = self._line.next()
        return agreed


def main(file: int) -> None:
    """The whole life of a worker, in a process of its own.

    It is sent a `Parcel`, the images of its banks, how many lanes it has and the level of the log messages that the
    driver wants; then (task, what it needs) or None for the end. It sends what `executors.worker` does, and asks the
    driver for plans. At SIGTERM it keeps what is under way and ends; it ends at once when its standard input does.

    Args:
        file: the number of the open file that is its pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})
    threading.Thread(target=_end_with_input, name="watch the parent", daemon=True).start()
    stop, pipe = Stop(), Connection(file)
    line = Line(pipe, stop)
    try:
        with stop.listening(signals=(signal.SIGTERM,)), tempfile.TemporaryDirectory(prefix="robustbench_meta-") as own:
            with muted(), stop.at_once():  # the driver has made the same grid, and said what there is to say about it
                parcel, lanes, level = pipe.recv()
                grid = unpack(parcel, [_received(pipe, bank.shape) for bank in parcel.banks], Path(own))
                device = choose_device("cuda" if parcel.recipe.device.startswith("cuda") else parcel.recipe.device)
            hear = Paced(line.tell)
            place = Workplace(
                grid, Sent({}, hear), device, Lanes(lambda: lanes), stop=stop, book=AskedBook(line), watches=True
            )
            with speaking_through(line.tell, level), computing_alone(device):
                line.tell("idle")
                while (sent := line.next()) is not None:
                    task, supplies = sent
                    do_task(replace(place, shelf=Sent(supplies, hear)), task, hear)
                    line.tell("idle")
    except Stopped:
        line.tell("stopped")
    except DeviceLostError:
        line.tell("stopped", why="could not compute on its device any more")
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the driver is gone
    except Exception as error:  # whatever it is, the driver tells it
        line.tell("error", kind=type(error).__name__, message=str(error), trace=traceback.format_exc())


def _received(pipe: Connection, shape: tuple[int, ...]) -> np.ndarray:
    images = np.empty(shape, np.uint8)
    pipe.recv_bytes_into(images.data.cast("B"))
    return images


def _end_with_input() -> None:
    """End this process at once when the one that started it is gone, however that ended."""
    while os.read(0, 1):
        pass
    os._exit(1)


# -- here ------------------------------------------------------------------------------------------
