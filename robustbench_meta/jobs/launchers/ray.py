"""Workers as tasks of a Ray cluster. Its nodes see the results folder, as in Ray's own training on several nodes.

A Ray task calls `worker_process.run_on_node`, which starts a process of its own (`processes.ProcessGroup`) that runs
`worker.Worker.work`. The jobs of a lost node are free again, and others do them.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import platform
import re
import signal
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.jobs.events import WorkerFailed
from robustbench_meta.jobs.launchers import Run
from robustbench_meta.jobs.policy import STOP
from robustbench_meta.jobs.processes import GRACE_SECONDS, ExitHandler, as_exception
from robustbench_meta.runtime.cpu import available_cores
from robustbench_meta.runtime.interrupts import SIGNALS, handling

try:
    import ray
    from ray import exceptions as ray_errors
except ImportError as absent:
    raise BenchError(
        f"ray is not installed ({absent}): pip install 'robustbench_meta[ray]', or use another --executor"
    ) from absent

_log = logging.getLogger(__name__)
OPTIONS = ("address", "gpus", "cpus", "workers")
POLL_SECONDS = 0.5
LOOK_SECONDS = 2.0
"""Between two looks at the nodes."""
CONNECT_SECONDS = 5.0
"""How long a cluster's address is given to answer."""
PATIENCE_SECONDS = 30.0
"""How long nothing is said of waiting for room in the cluster."""
_ADDRESS = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})", re.ASCII)
_LESS_MEMORY = "give a worker more of the node (ray:cpus=N), or lower --tasks-per-step, --query or the width"


class Request(NamedTuple):
    """What a run asks of a cluster: its address, cores and GPUs of a worker, and the most workers (None: any)."""

    address: str
    cpus: int
    gpus: float
    workers: int | None

    @classmethod
    def read(cls, options: Mapping[str, str], device: str) -> Request:
        """Make one from options as typed; BenchError if there is no such option, or it cannot have this value."""
        for name in options:
            if name not in OPTIONS:
                raise BenchError(unknown("option", name, OPTIONS, " of the executor 'ray'"))
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
    """Workers on the nodes of a Ray cluster; BenchError if none answers, or it has no room for a worker."""

    def __init__(self, options: Mapping[str, str], device: str) -> None:
        self._request = request = Request.read(options, device)
        self._ours = _connect(request)
        self._names: dict[Any, str] = {}
        """By task, the name of its worker."""
        self._unfit: dict[str, str] = {}
        """By node, why nothing can be done there."""
        self._looked, self._started = -math.inf, 0
        if not self._room():
            nodes = "; ".join(_resources(node) for node in _nodes()) or "none"
            self._leave()
            raise BenchError(f"no node of the Ray cluster has {request} for a worker; its nodes have: {nodes}")

    def launch(self, run: Run) -> None:
        """Run tasks until nothing is left to do, see `Launcher`."""
        self._run, self._exited = run, ExitHandler(lambda: run.queue, run.monitor)
        self._task = ray.remote(_node_task()).options(
            num_cpus=self._request.cpus, num_gpus=self._request.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        with contextlib.ExitStack() as stack:
            stack.callback(self._leave)
            stack.callback(self._end_tasks)
            self._work()

    def _leave(self) -> None:
        if self._ours:
            with _signals_kept():
                ray.shutdown()

    def _work(self) -> None:
        """Start tasks, and return when nothing is left to do."""
        heard, warned = time.monotonic(), False
        while True:
            self._run.stop.check()
            self._submit()
            if not self._names:
                return
            ready, _ = ray.wait(list(self._names), num_returns=1, timeout=POLL_SECONDS)
            self._run.monitor.poll()
            for task in ready:
                self._on_result(task)
            if any(name.startswith("ray.") for name in self._run.monitor.workers):
                heard = time.monotonic()
            if not warned and time.monotonic() > heard + PATIENCE_SECONDS:
                warned = True
                _log.warning(
                    "waiting for %s for a worker: the nodes of the Ray cluster are taken, or gone", self._request
                )

    def _room(self) -> int:
        """How many workers the cluster would have room for if nobody else used it, or as many as are wanted."""
        nodes = [node for node in _nodes() if node["NodeID"] not in self._unfit]
        room = sum(self._request.fits(node["Resources"]) for node in nodes)
        return room if self._request.workers is None else min(room, self._request.workers)

    def _end_tasks(self) -> None:
        """Workers have a moment to save their work."""
        if not self._names:
            return
        (self._run.folder / STOP).touch()
        ray.wait(list(self._names), num_returns=len(self._names), timeout=GRACE_SECONDS + 2)
        for task in self._names:
            with contextlib.suppress(ray_errors.RayError):
                ray.cancel(task, force=True)
        self._run.monitor.poll()

    def _submit(self) -> None:
        """A task for each place in the cluster, as long as there is something to do."""
        now = time.monotonic()
        if now < self._looked + LOOK_SECONDS:
            return
        self._looked = now
        room = self._room()
        if not room and self._unfit:
            raise BenchError(f"no node of the Ray cluster can do this run: {'; '.join(self._unfit.values())}")
        if self._run.queue.over():
            return
        kind = "cuda" if self._run.device.type == "cuda" else str(self._run.device)
        arguments = (str(self._run.folder.resolve()), self._request.cpus, kind, _installed(), list(self._unfit))
        for _ in range(room - len(self._names)):
            name = f"ray.{self._started}"
            self._started += 1
            self._names[self._task.remote(name, *arguments)] = name

    def _on_result(self, task: Any) -> None:
        name = self._names.pop(task)
        try:
            answer = ray.get(task)
        except ray_errors.RayError as error:
            self._on_loss(name, error)
            return
        if "unfit" in answer:
            node = answer["node"]
            if node not in self._unfit:
                self._unfit[node] = f"node {node[:8]} ({answer['address']}): {answer['unfit']}"
                _log.warning("%s; going on without it", self._unfit[node])
            self._looked = -math.inf
        elif "failed" in answer:
            raise as_exception(WorkerFailed(**answer["failed"]))

    def _on_loss(self, name: str, error: ray_errors.RayError) -> None:
        """A worker is lost with its node, or with Ray's process there."""
        workers = self._run.monitor.workers
        for worker in [each for each in workers if each.startswith(f"{name}.")] or [name]:
            if worker != name and worker not in workers:
                continue  # it was a fork of one that is gone
            if isinstance(error, ray_errors.OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in str(error):
                self._exited(worker, f"ran out of memory on its node: {_LESS_MEMORY}")
            else:
                self._exited(worker, "is lost with its node, or with Ray's process there", guilty=False)
        _log.debug("%s: %s", name, error)


def _node_task() -> Callable[..., dict[str, Any]]:
    """What Ray runs on a node. It is sent by value, so that it also runs where robustbench_meta is missing."""

    def work_on_node(
        name: str, folder: str, cpus: int, device: str, expected: dict[str, str], unfit: list[str]
    ) -> dict[str, Any]:
        import importlib.metadata  # noqa: PLC0415  # sent by value: imports are made where it runs
        import os  # noqa: PLC0415
        import platform  # noqa: PLC0415

        import ray  # noqa: PLC0415

        node = ray.get_runtime_context().get_node_id()
        answer = {"node": node, "address": ray.util.get_node_ip_address()}  # type: ignore[no-untyped-call]  # of Ray
        if node in unfit:
            return {"done": True}
        other = []
        for what, version in expected.items():
            there = ".".join(platform.python_version_tuple()[:2])
            if what != "python":
                try:
                    there = importlib.metadata.version(what).partition("+")[0]
                except importlib.metadata.PackageNotFoundError:
                    there = "not installed"
            if there != version:
                other.append(f"{what}: {there} there, {version} here")
        if other:
            return {"unfit": f"{'; '.join(other)}: install the same on all nodes", **answer}
        if not os.path.isfile(os.path.join(folder, "recipe.json")):
            return {
                "unfit": f"it does not see the results folder ({folder}): put --results on a file system that all "
                "nodes share, under the same path", **answer,
            }  # fmt: skip
        from robustbench_meta.jobs.worker_process import run_on_node  # noqa: PLC0415

        return {**run_on_node(name, folder, cpus, device), **answer}

    return work_on_node


def _installed() -> dict[str, str]:
    """The versions that must be the same on all nodes."""
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in ("robustbench_meta", "torch")}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **versions}


def _connect(request: Request) -> bool:
    """Connect to the cluster, or start one; whether it is ours to leave."""
    if ray.is_initialized():
        return False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if request.address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        quiet |= {"num_cpus": max(available_cores(), request.cpus), "include_dashboard": False}
    check_address(request.address)
    try:
        with _signals_kept():
            ray.init(address=request.address, **quiet)
    except (Exception, SystemExit) as error:  # Ray ends the process where it cannot connect
        reason = " ".join(str(error).split()) or type(error).__name__
        advice = "" if request.address == "local" else "; see `ray status` there, or start one by `ray start --head`"
        raise BenchError(f"the Ray cluster ray:address={request.address} cannot be used: {reason}{advice}") from error
    return True


def check_address(address: str) -> None:
    """Raise BenchError if it names a host and a port where nobody listens: Ray would take minutes to find out."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return
    try:
        socket.create_connection((match["host"].strip("[]"), int(match["port"])), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BenchError(
            f"the Ray cluster ray:address={address} does not answer ({getattr(error, 'strerror', None) or error}): "
            "expected the address of its head, HOST:6379 unless `ray start --head` was given another port"
        ) from error


def _signals_kept() -> contextlib.AbstractContextManager[None]:
    """Ray puts handlers of its own in place of ours."""
    return handling({number: signal.getsignal(number) or signal.SIG_DFL for number in SIGNALS})


def _nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]  # of Ray


def _resources(node: Mapping[str, Any]) -> str:
    resources = ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in ("CPU", "GPU"))
    return f"{node['NodeManagerAddress']} {resources}"


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
