"""Tasks as jobs of Slurm, sent by submitit; the results folder is on a file system that all nodes share.

A job does one task. What it has to tell it writes to a file, which is read here; what it must not lose it keeps in the
results folder. A job whose time is up, or whose node is taken away or lost, is sent again and goes on from there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from robustbench_meta.data.cache import cache_dir
from robustbench_meta.desk import Desk
from robustbench_meta.errors import BenchError
from robustbench_meta.executors import Policy, Recipe
from robustbench_meta.executors.slurm.clusters import Here, Queue
from robustbench_meta.executors.slurm.job import BEAT_SECONDS, PlanFolder
from robustbench_meta.executors.slurm.office import Office
from robustbench_meta.executors.slurm.request import Request
from robustbench_meta.files import cannot_write
from robustbench_meta.tuning import CacheBook

STALE_SECONDS = 30 * 24 * 3600.0
"""How long what jobs have left is kept."""


class Slurm:
    """Jobs of Slurm, or of this machine in their stead.

    Args:
        options: see `OPTIONS`.
        policy: of the run.
        recipe: of the run.

    Raises:
        BenchError: an option cannot be, or submitit or Slurm is not there.
    """

    def __init__(self, options: Mapping[str, str], policy: Policy, recipe: Recipe) -> None:
        self._request = Request.read(options, policy, recipe.device)
        self._submitit = _load_submitit()
        if not self._request.local:
            _check_slurm()
        self._recipe = dataclasses.replace(
            recipe,
            results=recipe.results.resolve(),
            plugins=recipe.plugins and recipe.plugins.resolve(),
            data_root=recipe.data_root and recipe.data_root.resolve(),
            device="cuda" if self._request.gpus else "cpu",
        )

    @property
    def slots(self) -> int:
        """See `Executor.slots`."""
        return self._request.jobs

    def run(self, desk: Desk) -> None:
        """See `Executor.run`."""
        root = self._recipe.results / ".slurm"
        folder = root / uuid.uuid4().hex[:12]
        try:
            root.mkdir(exist_ok=True)
            folder.mkdir(mode=0o700)  # submitit pickles what a job is to call: nobody else may change it
        except OSError as error:
            raise cannot_write(folder, error) from error
        cluster = (Here if self._request.local else Queue)(self._submitit, folder / "jobs", self._request)
        _clear(root)
        plans = PlanFolder(root / "plans")
        _share_plans(plans)
        office = Office(self._recipe, self._request, cluster, desk, folder, plans.folder)
        with _heart(folder / "heart"):
            try:
                office.work()
            finally:
                office.close()
        _keep_plans(plans)
        if not office.deaths:
            shutil.rmtree(folder, ignore_errors=True)


def _load_submitit() -> ModuleType:
    try:
        import submitit  # noqa: PLC0415  # optional
    except ImportError as error:
        raise BenchError("submitit is not installed: pip install 'robustbench_meta[slurm]'") from error
    module: ModuleType = submitit
    return module


def _check_slurm() -> None:
    missing = [name for name in ("sbatch", "squeue", "scancel", "srun") if shutil.which(name) is None]
    if missing:
        raise BenchError(
            f"there is no Slurm here ({', '.join(missing)} not found): start bench where jobs are sent from, such as a "
            "login node; --executor slurm:cluster=local tries the same out on this machine"
        )


@contextlib.contextmanager
def _heart(path: Path) -> Iterator[None]:
    """Inside, the file is touched now and then: it tells the jobs that somebody waits for them."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                path.touch()

    try:
        path.touch()
    except OSError as error:
        raise cannot_write(path, error) from error
    thread = threading.Thread(target=beat, name="tell the jobs that this process lives", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        path.unlink(missing_ok=True)


def _clear(root: Path) -> None:
    """Remove what runs have left that nobody has touched for long: logs, and what jobs told."""
    for folder in root.iterdir():
        with contextlib.suppress(OSError):
            if folder.name != "plans" and time.time() - max(map(_touched, [folder, *folder.iterdir()])) > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def _touched(path: Path) -> float:
    return path.stat().st_mtime


def _share_plans(plans: PlanFolder) -> None:
    """All jobs use the plans of this machine, where it has any."""
    mine = CacheBook()
    for path in sorted((cache_dir() / "plans").glob("[!.]*.json")):
        text = mine.read(path.stem)
        if text is not None and plans.read(path.stem) is None:
            plans.settle(path.stem, text)


def _keep_plans(plans: PlanFolder) -> None:
    """What the jobs have measured is used on this machine from now on."""
    mine = CacheBook()
    for name in plans.names():
        text = plans.read(name)
        if text is not None and mine.read(name) is None:
            mine.settle(name, text)
