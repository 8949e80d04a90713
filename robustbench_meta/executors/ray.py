"""Tasks on a Ray cluster: workers come and go with its nodes, and nothing is lost but the last seconds of their work.

No file system is shared, see `robustbench_meta.executors.remote`. Each worker is an actor that passes messages on
between this process and another one on its node, where the work is done.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from robustbench_meta.cores import available_cores
from robustbench_meta.deaths import how_it_ended
from robustbench_meta.desk import Desk
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.executors import Policy, Recipe, relay
from robustbench_meta.executors.processes import GRACE_SECONDS, POLL_SECONDS
from robustbench_meta.executors.remote import DISTRIBUTIONS, installed, pack, unlike
from robustbench_meta.executors.speech import Voice, raised
from robustbench_meta.grid import Grid
from robustbench_meta.tasks import ImageBank
from robustbench_meta.tuning import CacheBook

try:
    import ray
    from ray import exceptions as ray_errors
except ImportError as absent:
    raise BenchError(
        f"ray is not installed ({absent}): pip install 'robustbench_meta[ray]', or use another --executor"
    ) from absent

_log = logging.getLogger(__name__)
OPTIONS = ("address", "gpus", "cpus", "workers")
ENTRY = "robustbench_meta.executors.remote:main"
"""What the process on a node begins with."""
HEAR_SECONDS = 2.0
"""How long a worker waits for something to tell before it says that there is nothing."""
LOOK_SECONDS = 2.0
"""How often it is looked at which nodes there are."""
CONNECT_SECONDS = 5.0
"""How long a cluster's address is given to answer."""
PATIENCE_SECONDS = 30.0
"""How long nothing is said of waiting for room in the cluster."""
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})", re.ASCII)


@dataclass(frozen=True)
class Request:
    """What is asked of a cluster."""

    address: str
    """`local`: one that is started for this run; `auto`, HOST:PORT: one that is there."""
    cpus: int
    """Of a worker."""
    gpus: float
    """Of a worker."""
    workers: int | None
    """At most so many; None: as many as there is room for."""

    @classmethod
    def read(cls, options: Mapping[str, str], device: str) -> Request:
        """Make one from options as typed.

        Raises:
            BenchError: there is no such option, or it cannot have this value.
        """
        for name in options:
            if name not in OPTIONS:
                raise BenchError(unknown("option of the executor 'ray'", name, OPTIONS))
        gpus, cuda = options.get("gpus"), device.startswith("cuda")
        if gpus is not None and not cuda:
            raise BenchError(f"ray:gpus={gpus} is for --device cuda; this run is on {device}: leave it out")
        address = options.get("address") or os.environ.get("RAY_ADDRESS") or "local"
        if address not in {"local", "auto"} and not _ADDRESS.fullmatch(address):
            raise BenchError(
                f"ray:address={address}: expected auto (the cluster of this machine), HOST:PORT (of the cluster's "
                "head, as in 10.0.0.1:6379), or local (one for this run only)"
            )
        workers = options.get("workers")
        return cls(
            address, _count("cpus", options.get("cpus", "1")), _share(gpus or "1") if cuda else 0.0,
            _count("workers", workers) if workers is not None else None,
        )  # fmt: skip

    def fits(self, resources: Mapping[str, float]) -> int:
        """How many workers a node with these resources has room for."""
        room = resources.get("CPU", 0.0) / self.cpus
        if self.gpus:
            whole = resources.get("GPU", 0.0)
            room = min(room, whole / self.gpus if self.gpus >= 1 else whole * math.floor(1 / self.gpus + 1e-9))
        return math.floor(room + 1e-9)

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.cpus} CPU{gpus}"


class RayCluster:
    """Workers on the nodes of a Ray cluster.

    Args:
        options: as typed: address, gpus, cpus, workers.
        policy: how the run is done.
        recipe: of the run.
        grid: of the run.

    Raises:
        BenchError: an option is unknown or has a bad value, no cluster answers, or it has no room for a worker.
    """

    def __init__(self, options: Mapping[str, str], policy: Policy, recipe: Recipe, grid: Grid) -> None:
        del policy  # the desk has all of it that concerns workers
        self._request = Request.read(options, recipe.device)
        self._recipe, self._grid = recipe, grid
        self._ours = _connect(self._request)
        self.slots = _room(self._request)
        if not self.slots:
            nodes = "; ".join(_resources(node) for node in _nodes()) or "none"
            self._leave()
            raise BenchError(f"no node of the Ray cluster has {self._request} for a worker; its nodes have: {nodes}")

    def run(self, desk: Desk) -> None:
        """See `Executor.run`."""
        try:
            staff = _Staff(self._request, self._recipe, self._grid, desk)
            try:
                staff.work()
            finally:
                staff.dismiss()
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._ours:
            with _signals_kept():
                ray.shutdown()


class _Worker:
    """A worker as its driver sees it."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.call = actor.about.remote(DISTRIBUTIONS)
        """What it has been asked, and has not answered yet; None: nothing."""
        self.expects = "about"
        """Which question that was."""
        self.place, self.title = "a node", ""
        self.unfit: str | None = None
        """Why nothing can be done there; it keeps its place, so that no other is put there."""
        self.ready = self.busy = False
        self.stopped = ""
        """Why it ends in good order, in the middle of its task."""
        self.since = time.monotonic()

    def ask(self, question: str, *what: Any) -> None:
        """Ask something that has an answer; one question at a time."""
        self.expects, self.call = question, getattr(self.actor, question).remote(*what)

    def send(self, message: Any) -> None:
        """Send something to the process there."""
        self.actor.send.remote(pickle.dumps(message))

    def kill(self) -> None:
        """End it at once, and its process."""
        with contextlib.suppress(ray_errors.RayError):
            ray.wait([self.actor.kill.remote()], timeout=1.0)
        with contextlib.suppress(ray_errors.RayError):
            ray.kill(self.actor)


class _Staff:
    """The workers of one run."""

    def __init__(self, request: Request, recipe: Recipe, grid: Grid, desk: Desk) -> None:
        self._request, self._desk = request, desk
        self._workers: list[_Worker] = []
        self._voice, self._book = Voice(), CacheBook()
        self._installed = installed()
        parcel, arrays = pack(recipe, grid)
        if not parcel.banks and any(isinstance(source, ImageBank) for source in grid.splits):
            _log.warning("the data set is too large to be sent to the nodes: each loads it from its own --data-root")
        level = logging.getLogger("robustbench_meta").getEffectiveLevel()
        self._luggage = [ray.put(pickle.dumps((parcel, request.cpus, level))), *map(ray.put, arrays)]
        # so that it starts where robustbench_meta is missing
        ray.cloudpickle.register_pickle_by_value(relay)  # type: ignore[no-untyped-call]  # of Ray
        self._hired = ray.remote(relay.Relay).options(
            num_cpus=request.cpus, num_gpus=request.gpus, max_concurrency=4, max_restarts=0
        )
        self._room, self._looked = 0, -math.inf
        self._grumbled = self._leaving = False

    def work(self) -> None:
        """Start workers, and return when nothing is left to do."""
        while self._desk.open:
            self._desk.stop.check()
            self._hire()
            self._listen(POLL_SECONDS)
            for worker in list(self._workers):
                if (reason := self._desk.overdue(worker)) is not None:
                    self._drop(worker)
                    self._desk.expired(worker, reason)
            for worker in self._workers:
                if worker.ready and not worker.busy and worker.unfit is None:
                    self._give_task(worker)

    def dismiss(self) -> None:
        """End all workers; those at work have a moment to keep what they have."""
        self._leaving = True
        for worker in self._workers:
            if worker.ready and not worker.busy:
                worker.send(None)
            else:
                worker.actor.terminate.remote()
        until = time.monotonic() + GRACE_SECONDS
        while time.monotonic() < until and any(worker.ready for worker in self._workers):
            with contextlib.suppress(OSError, BenchError, ray_errors.RayError):  # whatever ends this run has been said
                self._listen(max(0.0, min(POLL_SECONDS, until - time.monotonic())))
        for worker in list(self._workers):
            self._drop(worker)

    def _hire(self) -> None:
        """Workers for what can be begun, as far as there is room."""
        now = time.monotonic()
        if now > self._looked + LOOK_SECONDS:
            self._room, self._looked = _room(self._request), now
        idle = sum(not each.busy and each.unfit is None for each in self._workers)
        for _ in range(min(self._room - len(self._workers), len(self._desk.waiting) - idle)):
            self._workers.append(_Worker(self._hired.remote()))
        if self._workers and all(each.unfit for each in self._workers):
            reasons = sorted({each.unfit or "" for each in self._workers})
            raise BenchError(f"no node of the Ray cluster can do this run: {'; '.join(reasons)}")
        waiting = not self._workers or all(
            each.expects == "about" and now > each.since + PATIENCE_SECONDS for each in self._workers
        )
        if waiting and self._desk.waiting and not self._grumbled:
            self._grumbled = True
            _log.warning("waiting for %s for a worker: the nodes of the Ray cluster are taken, or gone", self._request)

    def _listen(self, seconds: float) -> None:
        """Take note of what workers answer, waiting for the first so long."""
        calls = {worker.call: worker for worker in self._workers if worker.call is not None}
        if not calls:
            time.sleep(seconds)
            return
        ray.wait(list(calls), num_returns=1, timeout=seconds)
        for call in ray.wait(list(calls), num_returns=len(calls), timeout=0)[0]:
            self._answered(calls[call])

    def _answered(self, worker: _Worker) -> None:
        try:
            answer = ray.get(worker.call)
        except ray_errors.RayError as error:
            self._lost(worker, error)
            return
        if worker.expects == "about":
            self._meet(worker, *answer)
        elif worker.expects == "begin":
            worker.ask("hear", HEAR_SECONDS)
        else:
            messages, code, said = answer
            if code is None:
                worker.ask("hear", HEAR_SECONDS)
            for message in messages:
                kind, facts = pickle.loads(message)  # from a process of our own
                self._take_note(worker, kind, facts)
            if code is not None:
                self._bury(worker, code, said)

    def _meet(self, worker: _Worker, number: str, address: str, found: Mapping[str, str]) -> None:
        """It runs somewhere: begin there, if what is installed fits."""
        worker.place = f"node {number[:8]} ({address})"
        self._grumbled = False
        reason = unlike(self._installed, found)
        if reason is not None:
            self._leave_out(worker, f"{reason}: install the same on all nodes")
        else:
            worker.ask("begin", ENTRY, *self._luggage)

    def _take_note(self, worker: _Worker, kind: str, facts: Mapping[str, Any]) -> None:
        if kind == "idle":
            if worker.busy:
                worker.busy = False
                self._desk.over(worker)
            worker.ready = True
        elif kind == "stopped":
            worker.stopped = facts.get("why", "was told to stop")
        elif kind == "error":
            if worker.ready:
                raise raised(**facts)
            _log.debug("on %s: %s", worker.place, facts["trace"])
            self._leave_out(worker, facts["message"] or facts["kind"])
        elif kind == "plan_wanted":
            worker.send(self._book.read(**facts))
        elif kind == "plan_found":
            worker.send(self._book.settle(**facts))
        elif not self._voice.says(kind, facts):
            self._desk.hear(worker, kind, **facts)

    def _give_task(self, worker: _Worker) -> None:
        task = self._desk.next(worker)
        if task is not None:
            worker.busy, worker.title = True, task.title
            worker.send((task, self._desk.supplies(task)))

    def _bury(self, worker: _Worker, code: int, said: str) -> None:
        """The process of a worker has ended."""
        last = f"; it said: {said.splitlines()[-1]}" if said else ""
        if self._leaving or worker.ready:
            self._drop(worker)
        elif worker.unfit is None:
            self._leave_out(worker, f"a worker process there {how_it_ended(code)} while it was starting{last}")
        else:
            worker.call = None
        if worker.busy and not self._leaving:
            how = f"the process at work on {worker.title} on {worker.place} {how_it_ended(code)}{last}"
            if worker.stopped:
                how = f"the process at work on {worker.title} on {worker.place} {worker.stopped}"
            self._desk.died(worker, how, guilty=not worker.stopped)

    def _lost(self, worker: _Worker, error: ray_errors.RayError) -> None:
        """A worker is gone with its node, or Ray's process there is."""
        self._drop(worker)
        if self._leaving:
            return
        if not worker.busy:
            _log.info("%s is lost: %s", worker.place, error)
            return
        if isinstance(error, ray_errors.OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in str(error):
            self._desk.died(worker, f"{worker.place} ran out of memory with {worker.title} under way: {_LESS_MEMORY}")
        else:
            how = f"{worker.place} is lost, or Ray's process there, with {worker.title} under way"
            self._desk.died(worker, how, guilty=False)

    def _leave_out(self, worker: _Worker, reason: str) -> None:
        worker.unfit, worker.call = f"{worker.place}: {reason}", None
        if not self._leaving and all(each is worker or each.unfit != worker.unfit for each in self._workers):
            _log.warning("%s; going on without it", worker.unfit)

    def _drop(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        worker.kill()


_LESS_MEMORY = "give a worker more of the node (ray:cpus=N), or lower --tasks-per-step, --query or the width"


def _connect(request: Request) -> bool:
    """Connect to the cluster, or start one; whether it is ours to leave.

    Raises:
        BenchError: there is none, or it is of another version.
    """
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    match = _ADDRESS.fullmatch(request.address)
    if request.address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet |= {"num_cpus": max(available_cores(), request.cpus), "include_dashboard": False}
    elif match is not None:
        _check_answers(match["host"].strip("[]"), int(match["port"]), request.address)
    try:
        with _signals_kept():
            ray.init(address=request.address, **quiet)
    except (Exception, SystemExit) as error:  # Ray ends the process where it cannot connect
        told = " ".join(str(error).split()) or type(error).__name__
        advice = "" if request.address == "local" else "; see `ray status` there, or start one by `ray start --head`"
        raise BenchError(f"the Ray cluster ray:address={request.address} cannot be used: {told}{advice}") from error
    return True


def _check_answers(host: str, port: int, address: str) -> None:
    """Raise BenchError unless somebody listens there: Ray itself would take minutes to find out."""
    try:
        socket.create_connection((host, port), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BenchError(
            f"the Ray cluster ray:address={address} does not answer ({getattr(error, 'strerror', None) or error}): "
            "expected the address of its head, HOST:6379 unless `ray start --head` was given another port"
        ) from error


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts handlers of its own in place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # of Ray


def _room(request: Request) -> int:
    """How many workers the cluster would have room for if nobody else used it, or as many as are wanted."""
    room = sum(request.fits(node["Resources"]) for node in _nodes())
    return room if request.workers is None else min(room, request.workers)


def _resources(node: Mapping[str, Any]) -> str:
    held = ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    return f"{node['NodeManagerAddress']} {held}"


def _count(option: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise BenchError(f"ray:{option}={text}: expected a number, 1 or more")
    return int(text)


def _share(text: str) -> float:
    """Of a GPU, or how many."""
    try:
        gpus = float(text)
    except ValueError:
        gpus = math.nan
    if not (0 < gpus < 1 or (1 <= gpus < math.inf and gpus == round(gpus))):
        raise BenchError(
            f"ray:gpus={text}: expected a number of GPUs for each worker, 1 or more, or a share such as 0.5"
        )
    return gpus
