"""Several runs on one results folder at once, one of which is killed."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.survival.folders import faults, litter
from benchmarks.survival.runs import Bench

_PLUGIN = '''"""Notes who does what."""

import json
import os
import time

from robustbench_meta import hookimpl


def _note(**what):
    line = json.dumps({"by": os.getpid(), "at": time.monotonic(), **what}) + "\\n"
    handle = os.open(os.environ["SURVIVAL_WITNESS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, line.encode())
    os.close(handle)


@hookimpl
def training_progress(training, step, steps):
    _note(training=training, step=step, of=steps)


@hookimpl
def evaluation_progress(training, done, total):
    _note(evaluation=training, done=done, of=total)


@hookimpl
def cell_finished(record):
    _note(cell=record["key"])
'''
Note = dict[str, Any]


class Witness:
    """A plugin that notes in a file, both in a new folder, who trains and finishes what."""

    def __init__(self, folder: Path) -> None:
        (folder / "plugins").mkdir(parents=True)
        (folder / "plugins" / "witness.py").write_text(_PLUGIN, encoding="utf-8")
        self._folder, self._file = folder, folder / "seen.jsonl"

    def watches(self, bench: Bench) -> Bench:
        """The same runs, watched."""
        return bench.having("--plugins", str(self._folder / "plugins"), SURVIVAL_WITNESS=str(self._file))

    def notes(self) -> list[Note]:
        """What was seen so far."""
        if not self._file.exists():
            return []
        return [json.loads(line) for line in self._file.read_text(encoding="utf-8").splitlines(keepends=True)
                if line.endswith("\n")]  # fmt: skip


def together(benches: Sequence[Bench], folder: Path, name: str, *, step: int = 3) -> tuple[list[str], list[str]]:
    """Let runs go on one results folder at once, and kill the first that has trained for some steps.

    Returns:
        What was seen, and what was wrong.
    """
    reference, results, witness = folder / f"{name}-reference", folder / name, Witness(folder / f"{name}-witness")
    for bench in {each.arguments: each for each in benches}.values():
        bench.finish(reference)
    began = time.monotonic()
    runs = [witness.watches(bench).start(results, folder / f"{name}-{at}.log") for at, bench in enumerate(benches)]
    runs[0].until(lambda: bool(_training(witness, step)), pause=0.02)
    victim = next((run for run in runs if run.pid in _training(witness, step)), None)
    if victim is not None:
        victim.kill()
    wrong = [] if victim is not None else ["none could be killed: none was seen at work"]
    for at, run in enumerate(runs):
        if run is not victim and (code := run.wait()) != 0:
            wrong.append(f"run {at} ended with {code}; it said: {run.said[-1500:]}")
        if "Traceback" in run.said:
            wrong.append(f"run {at}: a traceback: {run.said[-1500:]}")
    seconds = time.monotonic() - began
    twice, workers = _doubled(witness.notes(), victim.pid if victim is not None else None)
    wrong += [*twice, *faults(results, reference)]
    count = len(list((results / "records").glob("[!.]*.json")))
    saw = f"{len(runs)} runs, {int(victim is not None)} killed, {workers} at work, {count} cells, {seconds:.0f} s"
    return [f"{saw}; files left that nobody needs: {litter(results)}"], wrong


def _training(witness: Witness, step: int) -> list[int]:
    return [note["by"] for note in witness.notes() if step <= note.get("step", -1) < note["of"]]


def _doubled(notes: list[Note], victim: int | None) -> tuple[list[str], int]:
    """What was done twice, but for what the one that was killed had under way; and how many did anything."""
    steps: dict[tuple[str, int], list[int]] = defaultdict(list)
    trainers: dict[str, set[int]] = defaultdict(set)
    cells: dict[str, int] = defaultdict(int)
    for note in notes:
        if "cell" in note:
            cells[note["cell"]] += 1
        elif "training" in note and note["by"] != victim:
            trainers[note["training"]].add(note["by"])
            steps[note["training"], note["step"]].append(note["by"])
    wrong = [f"{len(who)} runs trained {name}" for name, who in trainers.items() if len(who) > 1]
    wrong += [f"step {step} of {name} was made {len(who)} times" for (name, step), who in steps.items() if len(who) > 1]
    wrong += [f"cell {key} was finished {count} times" for key, count in cells.items() if count > 1]
    return wrong, len({note["by"] for note in notes})
