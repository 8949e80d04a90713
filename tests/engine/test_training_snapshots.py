"""Going on where the work was left: the same numbers, bit for bit, wherever it was."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from robustbench_meta import hookimpl
from robustbench_meta.engine import training_snapshots
from robustbench_meta.engine.engine import Plan
from robustbench_meta.engine.training import meta_train
from robustbench_meta.engine.training_snapshots import Pace, TrainingSnapshots, state_name
from robustbench_meta.errors import BenchError, StorageError
from robustbench_meta.experiment.checkpoints import Trained, checkpoint_bytes, checkpoint_name, weights_of
from robustbench_meta.experiment.spec import RunSpec
from robustbench_meta.jobs import events, runner
from robustbench_meta.jobs.policy import Policy
from robustbench_meta.registry.registry import load_registry
from robustbench_meta.results import leaderboard
from robustbench_meta.results.store import Store
from robustbench_meta.runtime.interrupts import Stop, Stopped

CPU = torch.device("cpu")
SMALL = {
    "profile": "smoke",
    "dataset": "toy",
    "meta_steps": 9,
    "episodes": 40,
    "attacks": ("none", "fgsm", "pgd:steps=2"),
}


@pytest.fixture(autouse=True)
def _keep_always(monkeypatch):
    monkeypatch.setenv(training_snapshots.SECONDS, "0")
    monkeypatch.setattr(events, "PACE_SECONDS", 0.0)
    monkeypatch.setattr(runner, "available_cores", lambda: 1)


def grid_of(registry, **given):
    return runner.build_grid(RunSpec.read(**{**SMALL, **given}), registry, None)


def interrupted(grid, folder, steps):
    """A meta-training that is told to stop after each of these steps, and goes on from there."""
    training = grid.trainings[0]
    for stops_at in [*steps, None]:
        stop = Stop()
        keeper = TrainingSnapshots(folder, training.key, stop)
        state = keeper.state(CPU)

        def report(step, _, stop=stop, stops_at=stops_at):
            if step == stops_at:
                stop.ask()

        plan = Plan("vmap", "loop", 2) if state is None else state.plan
        try:
            return meta_train(grid, training, CPU, plan, report, None, keeper, state)
        except Stopped:
            assert stops_at is not None
            assert keeper.state(CPU).step == stops_at
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize(
    "given",
    [
        {"learners": ("maml",), "dataset": "glyphs"},
        {"learners": ("adml",)},
        {"learners": ("adml:outer=sequential",)},
        {"learners": ("adml:attack_on=surrogate",)},
        {"learners": ("protonet",), "dataset": "glyphs", "backbone": "conv4:norm=batch,width=4"},
        {"learners": ("maml:first_order=true",), "dataset": "glyphs", "backbone": "conv4:width=4,norm=support"},
        {
            "learners": ("meta-baseline:base_batch=12,schedule=cosine,augment=flip",),
            "dataset": "glyphs",
            "backbone": "conv4:width=4,dropout=0.2",
        },
        {"learners": ("reptile:momentum=0.5,test_updates=5",), "dataset": "glyphs", "backbone": "conv4:width=4"},
        {"learners": ("maml++:steps=2",), "dataset": "glyphs", "backbone": "conv4:width=4"},
        {
            "learners": ("at:base=baseline++:base_batch=12;epochs=2;optimizer=sgd;momentum=0.9",),
            "dataset": "glyphs",
            "backbone": "conv4:width=4",
        },
    ],
    ids=lambda given: " ".join(given["learners"]),
)
def test_an_interrupted_training_gives_the_weights_of_one_that_was_not(registry, tmp_path, given):
    grid = grid_of(registry, **given)
    whole = meta_train(grid, grid.trainings[0], CPU, Plan("vmap", "loop", 2))
    resumed = interrupted(grid, tmp_path, (1, 4, 5, 8))
    assert resumed.history == whole.history
    assert (resumed.chosen_step, resumed.plan) == (whole.chosen_step, whole.plan)
    assert resumed.weights.keys() == whole.weights.keys()
    for name, weight in whole.weights.items():
        assert torch.equal(resumed.weights[name], weight), name
    assert resumed.seconds > 0


def test_a_plan_that_was_changed_on_the_way_goes_on(registry, tmp_path):
    """As after the device ran out of memory: the plan decides the rounding."""
    grid = grid_of(registry, learners=("maml",))
    keeper = TrainingSnapshots(tmp_path, grid.trainings[0].key, stop := Stop())
    with pytest.raises(Stopped):
        meta_train(grid, grid.trainings[0], CPU, Plan("loop", "loop", 1), lambda *_: stop.ask(), None, keeper)
    assert keeper.state(CPU).plan == Plan("loop", "loop", 1)


class StopsAt:
    """Tells a run to stop when so many events of a kind have been heard."""

    def __init__(self, event, count, stop):
        self.event, self.left, self.stop, self.seen = event, count, stop, []

    def _on_signal(self, event, told):
        self.seen.append((event, told))
        if event == self.event:
            self.left -= 1
            if self.left == 0:
                self.stop.ask()

    @hookimpl
    def training_progress(self, training, step):
        self._on_signal("training_progress", (training, step))

    @hookimpl
    def evaluation_progress(self, training, done):
        self._on_signal("evaluation_progress", (training, done))

    @hookimpl
    def cell_finished(self, record):
        self._on_signal("cell_finished", record["key"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    registry = load_registry()
    store = Store(tmp_path_factory.mktemp("whole"))
    runner.run(grid_of(registry), registry, store, CPU)
    return leaderboard.build(store).drop(columns=leaderboard.COSTS)


def attempt(folder, event, count, executor):
    """One run that is told to stop at its count-th event; what was heard, and whether it got to its end."""
    registry, stop = load_registry(), Stop()
    listener = StopsAt(event, count, stop)
    registry.manager.register(listener)
    try:
        runner.run(grid_of(registry), registry, Store(folder), CPU, Policy(executor=executor), stop=stop)
        return listener.seen, True
    except Stopped:
        return listener.seen, False


@pytest.mark.parametrize(
    ("executor", "event", "count"),
    [
        ("local", "training_progress", 5),
        ("local", "evaluation_progress", 4),
        ("local", "cell_finished", 2),
        ("processes", "evaluation_progress", 3),
    ],
)
def test_a_run_that_is_stopped_again_and_again_gives_the_same_rows(tmp_path, whole, executor, event, count):
    over, rounds, finished = False, 0, []
    while not over:
        seen, over = attempt(tmp_path, event, count, executor)
        finished += [key for kind, key in seen if kind == "cell_finished"]
        rounds += 1
        assert rounds < 40, "it does not get on"
    assert rounds > 1
    assert sorted(finished) == sorted(set(finished)), "a cell was finished twice"
    store = Store(tmp_path)
    pd.testing.assert_frame_equal(leaderboard.build(store).drop(columns=leaderboard.COSTS), whole, check_exact=True)
    assert list((tmp_path / "progress").iterdir()) == [], "no unfinished work is left"
    assert not (tmp_path / "damaged").exists()


def test_an_evaluation_goes_on_with_the_episodes_that_are_left(tmp_path):
    seen, over = attempt(tmp_path, "evaluation_progress", 4, "local")
    assert not over
    title, reached = [told for kind, told in seen if kind == "evaluation_progress"][-1]
    assert list((tmp_path / "progress").glob("*-*.safetensors"))
    seen, _ = attempt(tmp_path, "evaluation_progress", 10_000, "local")
    again = [done for kind, (who, done) in ((k, t) for k, t in seen if k == "evaluation_progress") if who == title]
    assert again[0] >= reached, "what was found before was not found again"


def test_an_evaluation_of_fewer_cells_uses_what_was_found_of_more(tmp_path, whole):
    attempt(tmp_path, "evaluation_progress", 4, "local")
    registry = load_registry()
    grid = grid_of(registry, attacks=("fgsm",))
    store = Store(tmp_path)
    before = {path: path.read_bytes() for path in (tmp_path / "progress").iterdir()}
    assert before
    summary = runner.run(grid, registry, store, CPU)
    assert summary.failed == []
    frame = leaderboard.build(store).drop(
        columns=[*leaderboard.COSTS, "worst_case_accuracy", "worst_case_ci95", "rank"]
    )
    expected = whole[whole.attack == "fgsm"].reset_index(drop=True)[frame.columns]
    fixed = [name for name in frame.columns if name != "flags"]  # some flags come from comparing rows
    pd.testing.assert_frame_equal(frame[fixed], expected[fixed], check_exact=True)


def test_what_was_found_with_other_weights_is_not_mixed_with_the_rest(tmp_path, whole):
    """As when a checkpoint was damaged, and trained again on another machine."""
    attempt(tmp_path, "evaluation_progress", 4, "local")
    [part, *_] = (tmp_path / "progress").glob("*-*.safetensors")
    key = part.name.partition(".")[0]
    path = tmp_path / checkpoint_name(key)
    weights, about = weights_of(path.read_bytes())
    path.write_bytes(checkpoint_bytes(Trained({name: -5 * each for name, each in weights.items()}), about))
    seen, _ = attempt(tmp_path, "evaluation_progress", 10_000, "local")
    title = next(title for title, _ in (told for kind, told in seen if kind == "evaluation_progress"))
    done = [done for kind, (who, done) in ((k, t) for k, t in seen if k == "evaluation_progress") if who == title]
    assert done[0] == 0, "all episodes are evaluated again"
    frame = leaderboard.build(Store(tmp_path))
    assert set(frame[frame.training_hash == key].clean_accuracy) != set(
        whole[whole.training_hash == key].clean_accuracy
    )


FLAKY = """
from pathlib import Path
from robustbench_meta import hookimpl
from robustbench_meta.plugins.attacks.fgsm import FGSM

class Flaky(FGSM):
    name = "flaky"
    def perturb(self, model, x, y, threat, generators):
        if not Path("{there}").exists():
            raise RuntimeError("the file is not there")
        return super().perturb(model, x, y, threat, generators)

@hookimpl
def register_attacks(register):
    register(Flaky)
"""


def test_what_failed_is_not_kept_for_the_next_try(tmp_path):
    (tmp_path / "flaky.py").write_text(FLAKY.format(there=tmp_path / "there"))
    registry, stop = load_registry(tmp_path), Stop()
    grid = grid_of(registry, learners=("maml",), attacks=("none", "flaky"))
    registry.manager.register(StopsAt("evaluation_progress", 3, stop))
    with pytest.raises(Stopped):
        runner.run(grid, registry, Store(tmp_path / "r"), CPU, stop=stop)
    (tmp_path / "there").touch()
    summary = runner.run(grid, registry, Store(tmp_path / "r"), CPU, Policy(retry_failed=True))
    assert (summary.finished, summary.failed) == (2, [])


def test_a_state_of_another_kind_of_device_is_not_gone_on_from(tmp_path, registry, caplog):
    grid, stop = grid_of(registry, learners=("maml",)), Stop()
    keeper = TrainingSnapshots(tmp_path, grid.trainings[0].key, stop)
    with pytest.raises(Stopped):
        meta_train(grid, grid.trainings[0], CPU, Plan(chunk=1), lambda *_: stop.ask(), None, keeper)
    assert keeper.state(torch.device("meta")) is None
    assert "left on cpu" in caplog.text


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: b"", lambda data: data[:60] + b"x" + data[61:]]
)
def test_damaged_state_is_told_and_the_work_begins_anew(tmp_path, whole, caplog, damage):
    attempt(tmp_path, "training_progress", 5, "local")
    [state] = (tmp_path / "progress").glob("*.safetensors")
    state.write_bytes(damage(state.read_bytes()))
    _, over = attempt(tmp_path, "training_progress", 10_000, "local")
    assert over
    assert state.name in caplog.text
    assert "begins anew" in caplog.text
    frame = leaderboard.build(Store(tmp_path)).drop(columns=leaderboard.COSTS)
    pd.testing.assert_frame_equal(frame, whole, check_exact=True)


def test_state_of_another_training_is_not_gone_on_from(registry, tmp_path):
    grid = grid_of(registry, learners=("maml",), seeds=(0, 1))
    first, second = grid.trainings
    stop = Stop()
    keeper = TrainingSnapshots(tmp_path, first.key, stop)
    with pytest.raises(Stopped):
        meta_train(grid, first, CPU, Plan(chunk=1), lambda *_: stop.ask(), None, keeper)
    (tmp_path / state_name(first.key)).rename(tmp_path / state_name(second.key))
    assert TrainingSnapshots(tmp_path, second.key, Stop()).state(CPU) is None


def test_fresh_forgets_and_gives_the_same_again(tmp_path, whole):
    registry, store = load_registry(), Store(tmp_path)
    for _ in range(2):
        summary = runner.run(grid_of(registry), registry, store, CPU, Policy(fresh=True))
        assert (summary.finished, summary.skipped) == (6, 0)
    frame = leaderboard.build(store).drop(columns=leaderboard.COSTS)
    pd.testing.assert_frame_equal(frame, whole, check_exact=True)


def test_a_changed_option_makes_new_cells_and_leaves_the_old_ones(tmp_path, registry):
    store = Store(tmp_path)
    runner.run(grid_of(registry, learners=("maml",)), registry, store, CPU)
    records = {path.name: path.read_bytes() for path in (tmp_path / "records").iterdir()}
    for change in ({"meta_steps": 10}, {"episodes": 41}, {"shot": 2}, {"eps": ("0.05",)}, {"seeds": (5,)}):
        grid = grid_of(registry, learners=("maml",), **change)
        changed = {cell.key for cell in grid.cells if cell.attack != "none" or "eps" not in change}
        assert changed.isdisjoint(name.removesuffix(".json") for name in records)
    runner.run(grid_of(registry, learners=("maml",), episodes=41), registry, store, CPU)
    assert {name: (tmp_path / "records" / name).read_bytes() for name in records} == records


def test_a_checkpoint_that_vanishes_is_trained_again(tmp_path, registry, whole):
    class Loses:
        """Removes the first checkpoint that is there."""

        lost = False

        @hookimpl
        def evaluation_progress(self, done):
            if not self.lost and done:
                self.lost = True
                next((tmp_path / "checkpoints").glob("[!.]*")).unlink()

    loser, own = Loses(), load_registry()
    own.manager.register(loser)
    summary = runner.run(grid_of(own), own, store := Store(tmp_path), CPU)
    assert loser.lost
    assert (summary.finished, summary.failed) == (6, [])
    frame = leaderboard.build(store).drop(columns=leaderboard.COSTS)
    pd.testing.assert_frame_equal(frame, whole, check_exact=True)


def test_a_disk_that_gets_full_stops_the_run_and_loses_nothing(tmp_path, registry, whole, monkeypatch):
    from robustbench_meta.runtime import atomic_files

    real, room = atomic_files.write_atomically, [3]

    def full(path, write, **given):
        room[0] -= 1
        if room[0] < 0:
            raise StorageError(f"cannot write {path}: No space left on device")
        real(path, write, **given)

    monkeypatch.setattr(atomic_files, "write_atomically", full)
    with pytest.raises(StorageError, match="No space left"):
        runner.run(grid_of(registry), registry, Store(tmp_path), CPU)
    monkeypatch.undo()
    runner.run(grid_of(registry), registry, store := Store(tmp_path), CPU)
    frame = leaderboard.build(store).drop(columns=leaderboard.COSTS)
    pd.testing.assert_frame_equal(frame, whole, check_exact=True)
    assert list((tmp_path / "failures").iterdir()) == []


@pytest.mark.parametrize(("cost", "next_"), [(0.0, 10.0), (0.1, 10.0), (1.0, 50.0)])
def test_keeping_takes_little_of_the_time(cost, next_):
    now = [100.0]
    pace = Pace(10.0, lambda: now[0])
    assert not pace.due()
    now[0] += 10
    assert pace.due()

    def keep():
        now[0] += cost

    pace.do(keep)
    now[0] += next_ - 0.01
    assert not pace.due()
    now[0] += 0.02
    assert pace.due()


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf"])
def test_seconds_that_cannot_be(monkeypatch, text):
    monkeypatch.setenv(training_snapshots.SECONDS, text)
    with pytest.raises(BenchError, match=f"{training_snapshots.SECONDS}={text}: expected a number of seconds"):
        training_snapshots.keep_seconds()


def test_the_state_is_gone_when_the_checkpoint_is_there(tmp_path, registry):
    grid = grid_of(registry, learners=("maml",))
    runner.run(grid, registry, store := Store(tmp_path), CPU)
    assert (tmp_path / checkpoint_name(grid.trainings[0].key)).is_file()
    assert list((tmp_path / "progress").iterdir()) == []
    assert np.isfinite(store.records()[0]["timings"]["train_seconds"])


def test_what_a_killed_run_left_and_nobody_needs_is_removed(tmp_path, registry):
    """As when it was killed between the writing of a record and the removal of what that came from."""
    attempt(tmp_path, "evaluation_progress", 4, "local")
    left = {path: path.read_bytes() for path in (tmp_path / "progress").iterdir()}
    grid = grid_of(registry)
    runner.run(grid, registry, Store(tmp_path), CPU)
    for path, data in left.items():
        path.write_bytes(data)
    state = tmp_path / state_name(grid.trainings[0].key)
    state.write_bytes(b"of a training that has its checkpoint")
    runner.run(grid, registry, Store(tmp_path), CPU)
    assert list((tmp_path / "progress").iterdir()) == []
