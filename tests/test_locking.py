"""Two processes that want one checkpoint: one trains it, the other waits and loads it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustbench_meta import locking
from robustbench_meta.locking import alone_at
from robustbench_meta.store import Store

TRACKER = '''
import os, time
from pathlib import Path
from robustbench_meta import hookimpl

HERE = Path(__file__).parent

@hookimpl
def training_progress(step):
    """In the middle of a training: wait until the other process has said that it waits, or for 30 s."""
    if step == 1:
        (HERE / f"trained-{os.getpid()}").touch()
        until = time.monotonic() + 30
        while time.monotonic() < until and not any("waits" in path.read_text() for path in HERE.glob("*.log")):
            time.sleep(0.05)
'''


def bench(folder: Path, attack: str) -> subprocess.Popen[bytes]:
    """A run of one learner in that folder, whose messages go to a file named after its attack."""
    command = [
        sys.executable, "-c", "from robustbench_meta.cli import main; main()", "run", "--profile", "smoke",
        "--meta-steps", "2", "--episodes", "4", "--dataset", "toy", "--learner", "maml", "--attack", attack,
        "--device", "cpu", "--plugins", str(folder), "--results", str(folder / "results"),
    ]  # fmt: skip
    with (folder / f"{attack}.log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, "COLUMNS": "400"})


def test_two_runs_in_one_folder_train_a_checkpoint_once(tmp_path):
    (tmp_path / "tracker.py").write_text(TRACKER)
    runs = {attack: bench(tmp_path, attack) for attack in ("none", "fgsm")}
    codes = {attack: run.wait(120) for attack, run in runs.items()}
    said = {attack: (tmp_path / f"{attack}.log").read_text() for attack in runs}
    assert codes == {"none": 0, "fgsm": 0}, said
    assert len(list(tmp_path.glob("trained-*"))) == 1
    [checkpoint] = (tmp_path / "results" / "checkpoints").glob("*.safetensors")
    [told] = [text for text in said.values() if "waits" in text]
    assert told.count("maml (seed 0) waits for another process, which is making the same file: ") == 1
    assert checkpoint.name in told
    records = Store(tmp_path / "results").records()
    assert {record["labels"]["attack"] for record in records} == {"none", "fgsm"}
    assert len({record["timings"]["train_seconds"] for record in records}) == 1, "both are of one training"


def test_a_lock_is_given_back_when_its_holder_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom robustbench_meta.locking import alone_at\n"
        "with alone_at(Path(sys.argv[1]), 'it'):\n    print('inside', flush=True)\n    time.sleep(60)"
    )
    path = tmp_path / "file"
    with subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "inside\n"
        holder.kill()
        holder.wait()
    began = time.monotonic()
    with alone_at(path, "it"):
        assert time.monotonic() - began < locking.PATIENCE_SECONDS


def test_an_error_inside_gives_the_lock_back_and_is_not_taken_for_one_of_the_lock(tmp_path):
    for _ in range(2):
        with pytest.raises(PermissionError, match="mine"), alone_at(tmp_path / "file", "it"):
            raise PermissionError("mine")


def test_where_files_cannot_be_locked_the_work_goes_on_and_says_so_once(tmp_path, caplog):
    inside = 0
    with caplog.at_level(logging.WARNING):
        for name in ("one", "two"):
            (tmp_path / f".{name}.lock").mkdir()
            with alone_at(tmp_path / name, "it"):
                inside += 1
    assert inside == 2
    [message] = caplog.messages
    assert message.startswith(f"{tmp_path}: files cannot be locked there (")
