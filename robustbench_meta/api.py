"""`import robustbench_meta as rbm`: `rbm.run(…)`, `rbm.evaluate(…)` and `rbm.load_results(…)`."""

from __future__ import annotations

import logging
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from robustbench_meta import callable_learner
from robustbench_meta.callable_learner import Adapt, OwnModels
from robustbench_meta.errors import BenchError
from robustbench_meta.experiment.python_arguments import (
    Folder,
    folder_of,
    maybe_folder,
    misspelt,
    read_options,
    several,
    suite_of,
    without_poison,
)
from robustbench_meta.experiment.suite import Suite
from robustbench_meta.experiment.surrogates import is_file
from robustbench_meta.jobs import runner
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.jobs.runner import PreparedRun
from robustbench_meta.options import chosen_executor, parse_jobs, parse_seconds
from robustbench_meta.registry.in_memory import GivenPlugins, Named, check_alone
from robustbench_meta.registry.registry import Registry
from robustbench_meta.reporting.results import Results, load_results
from robustbench_meta.results import frames, leaderboard
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.interrupts import Stop, Stopped

_log = logging.getLogger(__name__)

Progress = bool | Literal["auto"]
"""Whether progress is shown; `auto`: on a terminal and in a notebook. True: elsewhere, too, as lines on stderr."""
Numbers = NDArray[np.integer[Any]] | NDArray[np.floating[Any]]
"""Of numpy."""

__all__ = ["Adapt", "Folder", "Named", "Progress", "Results", "evaluate", "load_results", "run"]


@misspelt
def run(
    suite: Folder | None = None,
    *,
    learner: Named | Sequence[Named] | None = None,
    attack: Named | Sequence[Named] | None = None,
    eps: str | float | Sequence[str | float] | Numbers | None = None,
    scenario: str | Sequence[str] | None = None,
    surrogate: Named | None = None,
    seed: int | Sequence[int] | Numbers | None = None,
    dataset: Named | None = None,
    backbone: Named | None = None,
    way: int | None = None,
    shot: int | None = None,
    query: int | None = None,
    profile: str | None = None,
    meta_steps: int | None = None,
    tasks_per_step: int | None = None,
    episodes: int | None = None,
    checks: bool | None = None,
    results: Folder = "results",
    device: str = "auto",
    precision: Literal["float32", "tf32", "bf16"] | None = None,
    compile: Literal["on", "off"] = "off",
    chunk: int | None = None,
    jobs: int | Literal["auto"] = 1,
    executor: str = "local",
    ray_address: str | None = None,
    track: Named | Sequence[Named] = (),
    cell_timeout: float | str | None = None,
    retry_failed: bool = False,
    fresh: bool = False,
    data_root: Folder | None = None,
    plugins: Folder | None = None,
    local_plugins: bool = True,
    progress: Progress = "auto",
) -> Results:
    """Meta-train learners, attack them on unseen tasks, and rank them: `bench run` from Python.

    Arguments mean what the options of that name mean on the command line, and so do messages about them; what may be
    repeated there is a list here. What is finished is kept in the results folder: the same call goes on where it was
    interrupted, a larger grid does only what is new. Ctrl-C saves unfinished work, too.

    Where a plugin is named, its class or an instance will do: of one that was defined in a notebook, its source
    and its `version` identify its results. Such a plugin runs in this process only; a tracker needs no other.

    Args:
        suite: what to run, from a file, or a suite by its name; other arguments override it.
        learner: meta-learners; default maml and adml.
        attack: attacks; default none, fgsm and pgd.
        eps: bounds of the perturbation, pixels in 0…1: 0.1, "8/255", or "FROM:TO:COUNT"; default the data set's.
        scenario: what is attacked, SUPPORT/QUERY, or "all"; default "clean/adv".
        surrogate: of clean/transfer, the learner or the checkpoint's file on which attacks are made.
        seed: of meta-training and attacks; default 0.
        dataset: the data set; default glyphs.
        backbone: the network; default the data set's.
        way: classes in a task.
        shot: support images a class.
        query: query images a class.
        profile: what is not given is its: smoke, quick (the default) or paper.
        meta_steps: meta-updates in meta-training.
        tasks_per_step: tasks in a meta-update.
        episodes: test tasks that each number rests on.
        checks: whether reliability checks are made, which give the flags; default True.
        results: the folder where results go.
        device: auto, cpu, cuda or cuda:0, cuda:1, …
        precision: what layers are computed in; default float32.
        compile: whether meta-training goes through torch.compile.
        chunk: tasks computed at a time; None: chosen by device and network.
        jobs: trainings side by side. More than 1, or auto, may start processes, and then a script needs
            `if __name__ == "__main__":` around what it does. One training shares all cores on Linux.
        executor: local, processes or ray, with options as in "ray:gpus=1".
        ray_address: of a Ray cluster that runs already; means executor="ray".
        track: trackers that keep curves and cells, such as "tensorboard"; they hear of all, wherever it is done.
        cell_timeout: the longest that a cell's evaluation, or a meta-step, may take: seconds, or "10m", "2h".
        retry_failed: try again what failed before.
        fresh: forget what is kept of these cells first.
        data_root: the folder with data sets; default $ROBUSTBENCH_META_DATA, or the user's data folder.
        plugins: a folder with more plugins; default ./plugins if it is there.
        local_plugins: False for no plugins of a folder.
        progress: whether progress is shown.

    Returns:
        The cells of this run, those that were finished before among them; worst cases and ranks are over these.
        A cell that failed costs no other: it is in `failed`, and a warning is logged.

    Raises:
        BenchError: something of it cannot be, and what to do; of the subclasses in `robustbench_meta.errors`.
        KeyboardInterrupt: Ctrl-C; unfinished work is saved.

    Examples:
        >>> import robustbench_meta as rbm
        >>> results = rbm.run(learner="maml", attack=["none", "fgsm"], profile="smoke")
        >>> results
        <Results: 2 finished, 0 failed, path='results'>
        >>> results.leaderboard[["learner", "attack", "eps"]]
          learner attack  eps
        0    maml   none    0
        1    maml   fgsm  0.1
    """
    options, given = dict(locals()), GivenPlugins()
    typed = read_options(options, given)
    tracked = [given.typed("tracker", each) for each in several("track", track or None)]
    wanted = suite_of(suite).overridden(typed)
    chosen = chosen_executor(executor, ray_address)
    seconds = parse_seconds("cell_timeout", None if cell_timeout is None else str(cell_timeout))

    def bring(registry: Registry) -> None:
        given.bring(registry)
        check_alone(given.new, chosen, jobs, cell_timeout)

    policy = Policy(chosen, parse_jobs(str(jobs)), seconds, fresh, retry_failed)
    ready = runner.make_ready(
        wanted, maybe_folder(plugins), local_plugins, maybe_folder(data_root), policy, tracked, bring,
    )  # fmt: skip
    if given.new:
        policy = Policy(chosen, 1, seconds, fresh, retry_failed)
    return _compute(ready, folder_of(results), policy, progress, kept=True)


@misspelt
def evaluate(
    adapt: Adapt,
    *,
    name: str = "mine",
    version: str | None = None,
    attack: Named | Sequence[Named] | None = None,
    eps: str | float | Sequence[str | float] | Numbers | None = None,
    scenario: str | Sequence[str] | None = None,
    surrogate: Folder | None = None,
    seed: int = 0,
    dataset: Named | None = None,
    way: int | None = None,
    shot: int | None = None,
    query: int | None = None,
    profile: str | None = None,
    episodes: int | None = None,
    checks: bool | None = None,
    transductive: bool = False,
    backbone: str | None = None,
    meta_steps: int = 0,
    tasks_per_step: int = 1,
    results: Folder | None = None,
    device: str = "auto",
    jobs: int = 1,
    fresh: bool = False,
    data_root: Folder | None = None,
    plugins: Folder | None = None,
    local_plugins: bool = True,
    progress: Progress = "auto",
) -> Results:
    """Attack a model of your own, adapted by your own code, on the test episodes that every learner gets.

    `adapt(support_x, support_y)` is called for one task at a time and returns the model for it: any function or module
    from images to logits. Episodes, attacks, checks of what attacks return, reliability flags and intervals are those
    of `run`. How `adapt` works is its own business: it need not be differentiable, and may be any library's; the model
    that it returns must be differentiable in its images (by torch's autograd) for attacks that use gradients, and must
    be in evaluation mode. The global generators of torch, numpy and Python are seeded anew for each task.

    Nothing is kept, unless a results folder and a version are given. Then the rows stand beside those of `run`, under
    this name; as nobody but you can tell when the model has changed, you give it another version then. A few stored
    answers are held against the model's each time, which finds most mistakes in that.

    Args:
        adapt: (support_x float [way·shot, *shape] in [0, 1], support_y int64 [way·shot] in 0 … way−1) → model; model:
            images float [n, *shape] → logits float [n, way]. All on `device`.
        name: of the learner in tables: lower-case letters, digits, '-', '_', '.'.
        version: of the model and of `adapt`; needed where results are kept.
        attack: attacks, as for `run`.
        eps: as for `run`.
        scenario: as for `run`, but without poisoned support, which needs the gradient through `adapt`; "all" is all
            others. An attack on the support set is made on the model adapted to the clean one.
        surrogate: of clean/transfer, a checkpoint's file, such as "results/checkpoints/HASH.safetensors".
        seed: of the attacks, and of what `adapt` draws. Models of several trainings: one call each, with its seed.
        dataset: as for `run`, with all others that are named as there.
        way: classes in a task.
        shot: support images a class.
        query: query images a class.
        profile: what is not given is its.
        episodes: test tasks that each number rests on.
        checks: whether reliability checks are made.
        transductive: whether predictions of one query depend on the other queries, as with statistics of the batch.
        backbone: your network, if it is one that `bench list backbones` knows, as in "conv4:width=32". It is told in
            the tables only, as are the next two: rows are ranked in one table where all three agree.
        meta_steps: meta-updates that it was trained with.
        tasks_per_step: tasks in each of these.
        results: the folder where rows are kept; None: nowhere.
        device: where episodes and attacks are.
        jobs: processes that share out the episodes. More than 1 are forked (Linux, no CUDA), which not every library
            survives.
        fresh: forget what is kept of these cells first.
        data_root: the folder with data sets.
        plugins: a folder with more plugins.
        local_plugins: False for no plugins of a folder.
        progress: whether progress is shown.

    Returns:
        The cells of this call.

    Raises:
        BenchError: something of it cannot be, `adapt` or its model failed, the model is another than the one that is
            stored, or every cell failed.
        KeyboardInterrupt: Ctrl-C.

    Examples:
        >>> import robustbench_meta as rbm
        >>> def adapt(support_x, support_y):
        ...     centroids = [support_x[support_y == label].mean(0) for label in support_y.unique()]
        ...     return lambda x: torch.stack([-(x - each).square().flatten(1).mean(1) for each in centroids], 1)
        >>> results = rbm.evaluate(adapt, attack=["fgsm", "pgd"], profile="smoke")
        >>> results.leaderboard[["learner", "attack", "eps"]]
          learner attack  eps
        0    mine   fgsm  0.1
        1    mine    pgd  0.1
    """
    options = dict(locals())
    callable_learner.check_named(name)
    if results is not None and version is None:
        raise BenchError(
            f"results={str(results)!r} keeps rows of '{name}', and nothing but its `version` tells them from those of "
            "another model: give one, such as version='1', and another whenever the model or adapt changes"
        )
    if surrogate is not None and not is_file(str(surrogate)):
        raise BenchError(
            f"surrogate {str(surrogate)!r} is no checkpoint's file; meta-train it with run(), and give its "
            "results/checkpoints/HASH.safetensors"
        )
    given, models = GivenPlugins(), OwnModels(adapt, seed, name)
    learner = callable_learner.own_learner(models, name, is_transductive=transductive)
    transfer = None if surrogate is None else str(surrogate)
    scenarios = without_poison(several("scenario", scenario), transfer=transfer is not None) or None
    own = {"learner": name, "backbone": backbone or callable_learner.OWN, "surrogate": transfer, "scenario": scenarios}
    typed = read_options({**options, **own}, given)

    def bring(registry: Registry) -> None:
        callable_learner.bring(registry, learner, version)
        given.bring(registry)

    processes = parse_jobs(str(jobs))
    if processes == "auto":
        raise BenchError("invalid jobs 'auto': expected a number here, of processes that share out the episodes")
    policy = Policy(fresh=fresh, retry_failed=True)
    ready = runner.make_ready(
        Suite().overridden(typed), maybe_folder(plugins), local_plugins, maybe_folder(data_root), policy, bring=bring
    )
    grid = ready.grids[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if results is None else folder_of(results)
        store = Store(folder)
        stored = [] if fresh else [each for each in store.records() if each["training"] == grid.trainings[0].key]
        callable_learner.check_on_test_episodes(models, grid, ready.device, stored)
        stack.enter_context(threads(processes))
        found = _compute(ready, folder, policy, progress, kept=results is not None)
    if not len(found):
        raise BenchError(str(found.failed["reason"].iloc[0]))
    return found


def _compute(ready: PreparedRun, folder: Path, policy: Policy, progress: Progress, *, kept: bool) -> Results:
    """Run it, and read its results; `kept`: whether the folder stays."""
    store, stop = Store(folder), Stop()
    with _showing(ready, progress), _interruptible(stop, folder if kept else None):
        summary = runner.compute(ready, store, policy, stop)
    if kept:
        leaderboard.write(store)
    records = [record for record in store.records() if record["key"] in ready.keys]
    found = Results(records, frames.failed(runner.failures_of(summary)), folder if kept else None)
    if not found.failed.empty:
        _log.warning("%d of %d cells failed: see `failed` of the results", len(found.failed), len(ready.keys))
    return found


def _showing(ready: PreparedRun, progress: Progress) -> AbstractContextManager[Any]:
    if progress is False:
        return nullcontext()
    from robustbench_meta.reporting.terminal.console import err, is_screen  # noqa: PLC0415  # how the command line shows it
    from robustbench_meta.reporting.terminal.progress import showing_progress  # noqa: PLC0415  # the same

    console = err()
    return showing_progress(
        ready.registry.manager, console, show=progress is True or console.is_jupyter or is_screen(console)
    )


@contextmanager
def _interruptible(stop: Stop, folder: Path | None) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM first save unfinished work, and then have their usual effect."""
    try:
        with stop.listening(lambda: _log.warning("stopping: saving unfinished work; interrupt again to stop at once")):
            yield
    except Stopped:
        if stop.signal == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM) from None
        told = "nothing was saved" if folder is None else f"saved in {folder}: repeat the call to resume"
        raise KeyboardInterrupt(f"interrupted; {told}") from None


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Inside, torch has at most so many threads, and a run as many processes."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
