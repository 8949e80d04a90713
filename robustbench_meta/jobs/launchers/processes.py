"""Workers in processes of this machine, among which the cores or the CUDA devices are shared out."""

from __future__ import annotations

import torch

from robustbench_meta.jobs.launchers import Run
from robustbench_meta.jobs.processes import ProcessGroup, Spawned


class Processes:
    """Worker processes that are replaced when they die.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def launch(self, run: Run) -> None:
        """See `Launcher.launch`."""
        devices = devices_of(str(run.device))
        used = dict.fromkeys(devices, 0)

        def start(name: str) -> Spawned:
            device = min(devices, key=used.__getitem__)
            used[device] += 1
            return Spawned(run.folder, name, max(1, run.cores // self.workers), device)

        group = ProcessGroup(start, "worker", lambda: run.queue, run.monitor, run.stop)
        group.run(self.workers, cores=run.cores)


def devices_of(device: str) -> list[str]:
    """The devices that workers are shared out to: all CUDA devices where none is named."""
    if device == "cuda":
        return [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return [device]
