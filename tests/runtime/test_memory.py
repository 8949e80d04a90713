"""Memory: its peak is in the record, and work that does not fit is done in smaller chunks."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from robustbench_meta.engine.engine import Engine
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import runner
from robustbench_meta.results import leaderboard
from robustbench_meta.results.store import Store, unpack
from robustbench_meta.runtime import devices

CPU = torch.device("cpu")
MB = 2**20


def run(registry, folder, **given):
    spec = {"profile": "smoke", "dataset": "toy", "learners": ("maml",), "attacks": ("none", "fgsm"), "meta_steps": 3}
    grid = runner.build_grid(RunSpec.read(**{**spec, **given}), registry, None)
    store = Store(folder)
    return runner.run(grid, registry, store, CPU), store


def begins_anew():
    try:
        devices._CLEAR.write_text("5")
    except OSError:
        return False
    return True


@pytest.mark.skipif(not begins_anew(), reason="this system cannot begin the peak anew")
def test_the_peak_is_of_what_was_in_use_since_the_reset():
    """In a process of its own: one that computed before may hold freed memory for the block."""
    code = (
        "import torch\nfrom robustbench_meta.runtime import devices\nCPU = torch.device('cpu')\n"
        "devices.reset_peak_memory(CPU)\nbefore = devices.peak_memory(CPU)\nblock = torch.ones(100 * 2**18)\n"
        "peak = devices.peak_memory(CPU)\ndel block\nlater = devices.peak_memory(CPU)\n"
        "devices.reset_peak_memory(CPU)\nprint(before, peak, later, devices.peak_memory(CPU))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    before, peak, later, anew = map(int, out.split())
    assert 90 * MB < peak - before < 150 * MB
    assert later == pytest.approx(peak, abs=10 * MB)
    assert anew < before + 20 * MB


def test_without_proc_the_peak_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(devices, "_STATUS", tmp_path / "none")
    monkeypatch.setattr(devices, "_CLEAR", tmp_path / "none" / "none")
    devices.reset_peak_memory(CPU)
    assert 50 * MB < devices.peak_memory(CPU) < 2**40
    monkeypatch.setattr(devices, "resource", None)
    assert devices.peak_memory(CPU) is None


def test_the_record_and_the_row_tell_the_peak(registry, tmp_path):
    summary, store = run(registry, tmp_path)
    assert summary.failed == []
    for record in store.records():
        memory = record["memory"]
        assert set(memory) == {"train_bytes", "test_bytes"}
        assert min(memory.values()) > 50 * MB
        row = leaderboard.build(store).set_index("spec_hash").loc[record["key"]]
        assert row.peak_memory_mb == pytest.approx(max(memory.values()) / MB, abs=0.1)
    run(registry, tmp_path, attacks=("pgd:steps=1",))  # from the checkpoint, which remembers
    assert len({record["memory"]["train_bytes"] for record in store.records()}) == 1
    assert "peak_memory_mb" in leaderboard.COSTS


def test_a_peak_that_is_not_known_is_left_open(registry, tmp_path):
    _, store = run(registry, tmp_path, attacks=("none",))
    [record] = store.records()
    del record["memory"]  # as written before there was one
    store.write_record(record)
    assert math.isnan(leaderboard.build(store).peak_memory_mb.iloc[0])


def hungry(monkeypatch, operation, most):
    """Let an operation of the engine run out of memory on more than so many tasks; returns the sizes that it saw."""
    plain, seen = getattr(Engine, operation), []

    def limited(self, state, data, *rest, **named):
        tasks = len(data.x if hasattr(data, "x") else data)
        seen.append(tasks)
        if tasks > most:
            raise torch.OutOfMemoryError("CUDA out of memory (a test)")
        return plain(self, state, data, *rest, **named)

    monkeypatch.setattr(Engine, operation, limited)
    return seen


def bits(store):
    return {record["labels"]["attack"]: unpack(record["robust"]) for record in store.records()}


@pytest.mark.parametrize("operation", ["adapt", "attacked"])
def test_what_does_not_fit_is_done_in_smaller_chunks(registry, tmp_path, monkeypatch, operation):
    """Training and evaluation (adapt), and attacks on the test queries (attacked): every episode once, none failed."""
    run(registry, tmp_path / "plain", tasks_per_step=4)
    seen = hungry(monkeypatch, operation, 2)
    summary, store = run(registry, tmp_path / "tight", tasks_per_step=4)
    assert (summary.finished, summary.failed) == (2, [])
    assert max(seen) > 2
    plain = bits(Store(tmp_path / "plain"))
    for attack, found in bits(store).items():
        assert found.shape == plain[attack].shape
        assert np.mean(found == plain[attack]) > 0.95, attack  # other chunks, other rounding


def test_what_does_not_fit_even_one_by_one_fails_its_cells(registry, tmp_path, monkeypatch):
    seen = hungry(monkeypatch, "attacked", 0)
    summary, _ = run(registry, tmp_path)
    assert [cell.attack for cell, _ in summary.failed] == ["fgsm"]
    assert summary.finished == 1, "what needs no attack is not touched by it"
    assert "memory" in summary.failed[0][1]
    assert min(seen) == 1
