"""The speed benchmark: its counts, that everybody computes the same, and what it writes."""

import importlib
import os
import signal
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import evaluation, peers, report
from benchmarks.__main__ import app
from benchmarks.apart import Apart, Job
from benchmarks.cases import CASES, chosen
from benchmarks.flops import Work, counted, work_of
from benchmarks.gradients import TOLERANCE_FLOAT64, their_step
from benchmarks.measure import Contestant, Settings, clocked, here, race, relative
from benchmarks.outcomes import Goal, Machine, Measurements, Outcome, Point, Timed
from benchmarks.problems import Problem
from benchmarks.processes import Others, Watch, tree_mib
from benchmarks.scaling import line
from robustbench_meta.errors import BenchError

CPU = torch.device("cpu")
SETTINGS = Settings(CPU, threads=1, repeats=3, quick=True)


def problem(learner="maml", backbone="conv4:width=4,groups=2", tasks=2, **given):
    given = {"double": True, "dataset": "glyphs", "attacks": ("none",), "profile": "smoke", **given}
    backbone = None if given["dataset"] == "toy" else backbone
    return Problem.make(CPU, learners=(learner,), backbone=backbone, tasks_per_step=tasks, **given)


# -- counts ----------------------------------------------------------------------------------------

LAYERS = {
    "linear": [784 * 5],
    "mlp:width=64": [784 * 64, 64 * 64, 64 * 5],
    "conv4:width=64": [14**2 * 9 * 64, 7**2 * 9 * 64**2, 4**2 * 9 * 64**2, 2**2 * 9 * 64**2, 4 * 64 * 5],
    "conv4:width=8,pool=max": [28**2 * 9 * 8, 14**2 * 9 * 64, 7**2 * 9 * 64, 3**2 * 9 * 64, 8 * 5],
}


@pytest.mark.parametrize("backbone", LAYERS)
def test_work_is_two_operations_for_each_weight_at_each_place(backbone):
    weights_met = LAYERS[backbone]
    assert problem(backbone=backbone).work() == Work(2 * sum(weights_met), 2 * weights_met[0])


def test_work_of_conv4_64_is_about_45_gflop():
    """64 filters, 32 tasks, 5-way 1-shot, 15 queries: by hand, 32·(5·(9F − 5F₁) + 75·(3F − F₁)) with F = 5.3 MFLOP."""
    assert 32 * problem(backbone="conv4:width=64").work().maml(5, 75) / 1e9 == pytest.approx(45.2, abs=0.1)


def plain(each):
    """One task's meta-gradient by the plain loop, as a function to count."""
    library = peers.PlainLoop(each)
    return lambda: peers.meta_gradient(library)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize(("backbone", "excess"), [("linear", 0), ("mlp:width=9", 0), ("conv4:width=8,pool=max", 1)])
def test_the_closed_form_is_what_torch_counts(backbone, excess, steps):
    """The double backward of a convolution also computes the first layer's pixel gradient, which nobody needs."""
    each = problem(f"maml:steps={steps}", backbone, tasks=1)
    work = each.work()
    assert counted(plain(each)) == work.maml(5, 15, steps) + excess * steps * 5 * work.first


def test_strided_convolutions_do_a_little_more_than_the_closed_form():
    each = problem(backbone="conv4:width=16", tasks=1)
    assert 1.0 <= counted(plain(each)) / each.work().maml(5, 15) < 1.05


def test_an_attack_is_a_forward_pass_and_the_gradient_in_the_pixels():
    each = problem(backbone="conv4:width=8")
    module, x = each.module(), each.tasks.query.x[0].clone().requires_grad_() * 1
    found = counted(lambda: torch.autograd.grad(each.loss(module(x), each.tasks.query.y[0]), x))
    assert found == 15 * work_of(module, (1, 28, 28)).attack


def test_an_evaluation_adapts_once_for_each_support_set():
    work = Work(forward=10, first=4)
    adapt, attack = 5 * (30 - 4), 20
    fgsm = adapt + attack * (5 + 2 * 25) + 3 * 25 * 10
    pgd = adapt + 20 * attack * (5 + 2 * 25) + 3 * 25 * 10
    assert work.evaluation(5, 25, [1, 20]) == adapt + 25 * 10 + fgsm + pgd


# -- everybody computes the same -------------------------------------------------------------------

PROBLEMS = {
    "maml": {},
    "maml-5-steps": {"learner": "maml:steps=5,alpha=0.1"},
    "batch-norm": {"backbone": "conv4:width=4,norm=batch"},
    "max-pool": {"backbone": "conv4:width=4,groups=2,pool=max"},
    "adml": {"learner": "adml"},
    "adml-batch-norm": {"learner": "adml", "backbone": "conv4:width=4,norm=batch"},
    "toy": {"dataset": "toy", "way": 2},
}


def make(library, each):
    if library is not peers.PlainLoop:
        pytest.importorskip(library.name, reason=f"{library.name} is not installed (pip install '.[bench]')")
    return library(each)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("library", peers.LIBRARIES, ids=lambda library: library.name)
def test_a_library_finds_our_gradient(library, name):
    each = problem(**PROBLEMS[name])
    ours = each.gradient()
    assert ours.norm() > 1e-4, "nothing to compare"
    assert relative(peers.meta_gradient(make(library, each)), ours) < TOLERANCE_FLOAT64


@pytest.mark.parametrize("name", [name for name in PROBLEMS if "adml" not in name])
def test_plain_vmap_finds_our_gradient(name):
    each = problem(tasks=3, **PROBLEMS[name])
    for chunk in (None, 2):
        assert relative(peers.vmapped(each, chunk)(), each.gradient()) < TOLERANCE_FLOAT64


@pytest.mark.parametrize("library", peers.LIBRARIES, ids=lambda library: library.name)
def test_every_repetition_of_a_step_begins_at_the_same_weights(library):
    step = their_step(make(library, problem("adml")))
    assert torch.equal(step(), step())


def test_the_loop_over_episodes_predicts_what_we_predict():
    given = {"episodes": 4, "scenarios": ("clean/adv", "adv/clean", "adv/adv")}
    each = problem(double=False, attacks=("none", "fgsm", "pgd:steps=20,alpha=0.01,random_start=false"), **given)
    ours, theirs = evaluation.ours(each, CPU), evaluation.by_episode(each, 4)
    assert len(ours) == 7
    assert evaluation.disagreement(theirs, ours) <= 0.02
    assert evaluation.disagreement({**theirs, "pgd adv/adv": ~theirs["pgd adv/adv"]}, ours) > 0.9
    assert evaluation.disagreement({}, ours) == 1.0


def test_a_library_that_is_not_there_is_told(monkeypatch):
    def refuse(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    found, notes = peers.installed(problem())
    assert [library.name for library in found] == ["plain loop"]
    assert notes == ["higher is not installed and was left out", "torchopt is not installed and was left out"]


# -- our process ------------------------------------------------------------------------------------


def our_job(settings, fault=None):
    if fault == "error":
        raise ValueError("not so")
    each = problem(tasks=3, cores=settings.cores())
    plan = each.plan_training()

    def run():
        if fault == "death":
            os.kill(os.getpid(), signal.SIGKILL)
        return each.gradient()

    return Job(run, {"plan": plan, "cores": each.engine.cores.count(), "threads": torch.get_num_threads()})


def test_our_process_computes_as_the_product_and_finds_our_gradient():
    threads, expected = torch.get_num_threads(), problem(tasks=3).gradient()
    with Apart(our_job, Settings(CPU, threads=2, quick=True)) as ours:
        assert (ours.told["cores"], ours.told["threads"]) == (2, 1)
        assert ours.told["plan"].chunk <= 3
        seconds, result = ours.turn()
        assert relative(result(), expected) < TOLERANCE_FLOAT64
        assert 0 < seconds < 60
        assert ours.memory_mib() > 50
        assert ours.peak_mib_of_turn() > 50
        pid = ours._process.pid
    assert torch.get_num_threads() == threads
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_what_fails_in_our_process_is_told():
    with pytest.raises(RuntimeError, match=r"(?s)our process failed:.*ValueError: not so"):
        Apart(partial(our_job, fault="error"), SETTINGS)
    with Apart(partial(our_job, fault="death"), SETTINGS) as ours, pytest.raises(RuntimeError, match="exit code -9"):
        ours.turn()


@pytest.mark.skipif(tree_mib(os.getpid()) is None, reason="needs Linux")
def test_memory_is_that_of_all_processes_and_the_cpu_that_of_others():
    others = Others()
    with Watch(os.getpid(), 0.01) as watch:
        before, held = watch.peak_mib or 0.0, bytearray(200 * 2**20)
        held[::4096] = b"x" * len(held[::4096])
    assert watch.peak_mib > before + 150
    clocked(lambda: sum(range(1000)), CPU, 0.2)
    assert others.cores() < os.cpu_count() + 1


def test_short_work_is_repeated_within_a_turn():
    runs = []
    seconds, last = clocked(lambda: runs.append(1) or len(runs), CPU, 0.02)
    assert last == len(runs) > 2
    assert seconds < 0.02


@pytest.mark.parametrize("case", ["toy", "evaluation"])
def test_a_case_is_measured(case, tmp_path):
    path, threads = tmp_path / "speed.json", torch.get_num_threads()
    done = CliRunner().invoke(app, [case, "--quick", "--threads", "1", "--json", str(path)])
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    (outcome,) = Measurements.read(path).outcomes
    assert outcome.figures
    assert all(timed.agrees and len(timed.seconds) == 2 for timed in outcome.timed)
    assert all(goal.met for goal in outcome.goals)


# -- measuring -------------------------------------------------------------------------------------


def test_who_finds_something_else_is_no_peer():
    outcome, order = Outcome(case="a", group="b", title="c"), []

    def runner(name, value):
        run = here(lambda: order.append(name) or torch.tensor([value]), CPU)
        return Contestant(name, run, "ours" if name == "us" else "peer")

    race(
        outcome, [runner("us", 1.0), runner("right", 1.0005), runner("wrong", 2.0)], SETTINGS,
        difference=relative, tolerance=1e-3,
    )  # fmt: skip
    assert [timed.agrees for timed in outcome.timed] == [True, True, False]
    assert outcome.best_peer.name == "right"
    assert all(len(timed.seconds) == 3 for timed in outcome.timed)
    warm_up, turns = order[:3], [order[i : i + 3] for i in (3, 6, 9)]
    assert sorted(warm_up) == sorted(turns[0])
    assert turns == [["us", "right", "wrong"], ["right", "wrong", "us"], ["wrong", "us", "right"]]


def test_a_straight_line_is_told_from_a_curve():
    each, off = line([(1, 3.0), (2, 5.0), (4, 9.0)])
    assert (each, off) == (pytest.approx(2.0), pytest.approx(0.0, abs=1e-9))
    assert line([(1, 1.0), (2, 4.0), (4, 16.0)])[1] > 0.15


def test_cases_are_chosen_by_name_and_by_group():
    assert len({case.name for case in CASES}) == len(CASES)
    assert [case.name for case in chosen(["tiny", "conv4-64"])] == ["conv4-64", "toy", "mlp"]
    assert len(chosen([])) == len(CASES)
    with pytest.raises(BenchError, match="no case or group 'conv5'"):
        chosen(["conv5"])


# -- reports ---------------------------------------------------------------------------------------


@pytest.fixture
def measured():
    def timed(name, role, *seconds, **given):
        return Timed(name=name, role=role, seconds=list(seconds), **given)

    race_of_four = Outcome(
        case="conv4-64", group="meta-gradient", title="MAML", gflop=45.2, limit_gflop=17.2,
        timed=[
            timed("ours", "ours", 0.5, 0.4, 0.6),
            timed("higher", "peer", 1.0, 1.0, 1.0, difference=1e-6, difference_float64=1e-15),
            timed("cheat", "peer", 0.1, 0.1, 0.1, difference=0.5, agrees=False),
            timed("matrix product", "limit", 0.125, 0.125, 0.125),
        ],
        goals=[
            Goal(what="time", value=0.5, limit=0.4),
            Goal(what="share of the rate", value=0.66, limit=0.6, at_most=False),
        ],
    )  # fmt: skip
    curve = Outcome(
        case="scaling-tasks", group="scaling", title="by tasks", axis="tasks", figures={"seconds for one more": 0.025},
        points=[Point(value=8, seconds=0.2, peak_mib=500, base_mib=400), Point(value=16, seconds=0.4)],
    )  # fmt: skip
    absent = Outcome(case="omniglot", group="omniglot", title="from disk", skipped="no Omniglot")
    machine = Machine(
        device="cpu (Some CPU, 2 threads)", cpu="cpu (Some CPU, 2 threads)", cores=2, threads=2,
        versions={"torch": "2.13.0"}, matmul_gflops=138.0,
    )  # fmt: skip
    return Measurements(machine=machine, quick=False, repeats=3, outcomes=[race_of_four, curve, absent])


def test_ratio_spread_and_share_are_what_they_say(measured):
    case = measured.outcomes[0]
    assert case.best_peer.name == "higher"
    assert case.ratio(case.best_peer) == 0.5
    assert case.spread(case.best_peer) == (0.4, 0.6)
    assert case.matmul_rate == pytest.approx(17.2 / 0.125)
    assert case.share(case.ours) == pytest.approx(45.2 / 0.5 / (17.2 / 0.125))
    assert [goal.met for goal in case.goals] == [False, True]


def test_measurements_survive_their_file(measured, tmp_path):
    path = tmp_path / "new" / "speed.json"
    measured.write(path)
    assert Measurements.read(path) == measured
    measured.put(Outcome(case="omniglot", group="omniglot", title="now there"))
    assert [outcome.title for outcome in measured.outcomes] == ["MAML", "by tasks", "now there"]


def test_the_docs_have_the_figures_and_keep_the_rest(measured, tmp_path):
    docs = tmp_path / "benchmarks.md"
    docs.write_text(f"# Before\n\n{report.BEGIN}\nold figures\n{report.END}\n\n# After\n")
    report.update_docs(docs, [measured])
    text = docs.read_text()
    assert text.startswith("# Before\n\n")
    assert text.endswith("\n\n# After\n")
    assert "old figures" not in text
    assert "| ours | 500 ms | 400 ms – 600 ms |  | 66% |  |" in text
    assert "| higher | 1 s | 1 s – 1 s | 0.50 (0.40–0.60) | 33% | 1e-06 |" in text
    assert "| cheat | 100 ms | 100 ms – 100 ms | another result |" in text
    assert "| conv4-64 | time | 0.5 | ≤ 0.4 | no |" in text
    assert "| 8 | 200 ms | 500 | 100 |" in text
    assert "Skipped: no Omniglot." in text
    report.update_docs(docs, [measured])
    assert docs.read_text() == text


def test_the_docs_get_a_block_or_an_error(measured, tmp_path):
    docs = tmp_path / "benchmarks.md"
    docs.write_text("# What we measured\n")
    report.update_docs(docs, [measured, measured])
    assert docs.read_text().count("### cpu (Some CPU, 2 threads)") == 2
    docs.write_text(f"{report.END} {report.BEGIN}")
    with pytest.raises(ValueError, match="must both be there"):
        report.update_docs(docs, [measured])


@pytest.mark.parametrize("width", [80, 160])
def test_tables_fit_the_screen(measured, tmp_path, width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    path = tmp_path / "speed.json"
    measured.write(path)
    shown = CliRunner().invoke(app, ["--from", str(path)])
    assert shown.exit_code == 0, shown.output
    assert "0.50 (0.40–0.60)" in shown.output
    assert "…" not in shown.output
    assert max(map(len, shown.output.splitlines())) <= width


def test_the_command_lists_its_cases_and_refuses_others():
    listed = CliRunner().invoke(app, ["--list"])
    assert all(case.name in listed.output for case in CASES)
    refused = CliRunner().invoke(app, ["conv5"])
    assert refused.exit_code == 2
