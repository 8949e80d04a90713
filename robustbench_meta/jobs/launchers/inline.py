"""One worker: this process."""

from __future__ import annotations

from robustbench_meta.engine.parallel import Cores
from robustbench_meta.errors import BenchError, DeviceLostError
from robustbench_meta.jobs.context import WorkerContext
from robustbench_meta.jobs.events import EventLog
from robustbench_meta.jobs.launchers import Run
from robustbench_meta.jobs.queue import Queue
from robustbench_meta.jobs.worker import Worker
from robustbench_meta.runtime.cpu import computing_alone


class Inline:
    """It has all cores."""

    def launch(self, run: Run) -> None:
        """See `Launcher.launch`."""
        log = EventLog(run.folder / "worker.jsonl", run.stop, after=run.monitor.poll)
        queue = Queue(run.grids, run.store, run.queue.cells, run.device.type, log)
        place = WorkerContext(run.store, run.device, Cores(lambda: run.cores), run.stop)
        try:
            with computing_alone(run.device):
                Worker(place, queue, run.monitor, exit_when_waiting=run.policy.exit_when_waiting).work()
        except DeviceLostError as lost:
            raise BenchError(
                f"{lost}. Nothing more can be computed on {run.device} by this process: rerun the same command to "
                "resume, or add --executor processes, which begins a new one by itself"
            ) from lost
        finally:
            log.close()
