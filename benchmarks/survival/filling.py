"""Runs on a disk that gets full, and go on when there is room again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.survival.folders import damage, faults, temporary
from benchmarks.survival.runs import Bench

SIZE = 64 * 2**20
"""Bytes of the disk."""
MOUNTS = "SURVIVAL_MOUNTS"
"""In the environment: this process may mount."""
FULL = "No space left on device"


def namespace() -> list[str] | None:
    """What to put before a command that it may mount file systems, seen by itself only; None: it may not, here."""
    mount = 'd=$(mktemp -d) && mount -t tmpfs -o size=64k survival "$d" && umount "$d"; s=$?; rmdir "$d"; exit $s'
    for prefix in (["unshare", "-m"], ["unshare", "-rm"]) if shutil.which("unshare") else ():
        if subprocess.run([*prefix, "sh", "-c", mount], capture_output=True, check=False).returncode == 0:
            return prefix
    return None


def inside(arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes] | None:
    """Do `python …` where it may mount, to its end; None: nowhere here."""
    prefix = namespace()
    if prefix is None:
        return None
    command = [*prefix, sys.executable, *arguments]
    return subprocess.run(command, check=False, env={**os.environ, MOUNTS: "1"})


class Disk:
    """A small disk of its own, in memory, mounted at `place`."""

    def __init__(self, place: Path, options: str = f"size={SIZE}") -> None:
        self.place, self._filler = place, place / "filler"
        place.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "survival", str(place)], check=True)

    def free(self) -> int:
        """Bytes."""
        stat = os.statvfs(self.place)
        return stat.f_bavail * stat.f_frsize

    def leave(self, room: int) -> None:
        """Fill it up to so many bytes."""
        with self._filler.open("ab") as file:
            here = file.tell()
            if self.free() > room:
                os.posix_fallocate(file.fileno(), here, self.free() - room)

    def clear(self) -> None:
        """Take away what it was filled with."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """It is no more."""
        subprocess.run(["umount", str(self.place)], check=True)


def fill(bench: Bench, folder: Path, points: int, report: Callable[[str], None]) -> tuple[list[str], list[str]]:
    """Run with too little room, at several points; then make room and go on. What was seen, and what was wrong.

    The points are 0, 4 and 20 KiB, then parts of what a run needs.
    """
    reference = folder / "reference"
    disk = Disk(folder / "disk")
    need = _need(bench, disk, reference)
    seen, wrong, stopped = [f"an undisturbed run needs {need / 1024:,.0f} KiB"], [], 0
    few = [0, 4096, 20480][:points]
    rooms = [*few, *(need * (1 + index) // (points - len(few) + 1) for index in range(points - len(few)))]
    reached: list[str] = []
    for room in rooms:
        code, cells, found = full(bench, disk, room, reference)
        stopped += code == 2
        reached.append(f"{room / 1024:.0f}: {cells}")
        wrong += [f"with {room} bytes: {each}" for each in found]
        report(f"{room / 1024:.0f} KiB of room: exit code {code}, {cells} cells were done; {len(wrong)} faults")
    disk.unmount()
    by_room = ", ".join(reached)
    seen.append(f"{len(rooms)} points, {stopped} stopped with exit code 2; cells done by KiB of room: {by_room}")
    for files in (1, 2, 4):
        wrong += [f"{files} inodes for locks: {each}" for each in _without_locks(bench, folder, reference, files)]
    seen.append("a lock folder that takes 0, 1 and 3 files: tried as well")
    return seen, wrong


def full(bench: Bench, disk: Disk, room: int, reference: Path) -> tuple[int, int, list[str]]:
    """Run with so many bytes of room, then with enough: the first exit code, the cells done then, what was wrong."""
    results, logs = disk.place / "results", reference.parent
    disk.leave(room)
    code, wrong = _refused(bench, results, logs / f"full-{room}.log")
    cells = len(list((results / "records").glob("[!.]*.json")))
    disk.clear()
    wrong += _goes_on(bench, results, reference, logs)
    shutil.rmtree(results, ignore_errors=True)
    return code, cells, wrong


def _need(bench: Bench, disk: Disk, reference: Path) -> int:
    """The most bytes that a run takes at a time; the results are moved to `reference`."""
    before, results = disk.free(), disk.place / "results"
    least = before

    def look() -> bool:
        nonlocal least
        least = min(least, disk.free())
        return False

    run = bench.start(results, reference.with_name("reference.log"))
    run.until(look, pause=0.002)
    assert run.wait() == 0, run.said
    shutil.move(results, reference)
    return before - least


def _refused(bench: Bench, results: Path, log: Path) -> tuple[int, list[str]]:
    """A run that has too little room; one that ends well had enough."""
    run = bench.start(results, log)
    code = run.wait()
    said = " ".join(run.said.split())
    wrong = damage(results)
    if temporary(results):
        wrong.append("a temporary file was left")
    if code == 0:
        return code, wrong
    if code != 2 or said.count(FULL) != 1 or said.count("Error:") != 1 or "Traceback" in said:
        wrong.append(f"exit code {code}; it said: {run.said[-1500:]}")
    return code, wrong


def _goes_on(bench: Bench, results: Path, reference: Path, folder: Path) -> list[str]:
    run = bench.start(results, folder / "after.log")
    code = run.wait()
    return faults(results, reference) if code == 0 else [f"with room again: exit code {code}: {run.said[-1500:]}"]


def _without_locks(bench: Bench, folder: Path, reference: Path, files: int) -> list[str]:
    """The folder of the locks takes no more files."""
    results = folder / f"locks-{files}"
    disk = Disk(results / ".locks", f"nr_inodes={files}")
    code, wrong = _refused(bench, results, folder / f"locks-{files}.log")
    disk.unmount()
    return [*wrong, *([] if code == 2 else [f"exit code {code}"]), *_goes_on(bench, results, reference, folder)]
