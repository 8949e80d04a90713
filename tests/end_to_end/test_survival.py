"""Nothing is lost: short forms of what `python -m benchmarks.survival` does at length."""

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("process groups, forks and mounts as Linux has them", allow_module_level=True)

import textwrap
from functools import partial

from benchmarks.survival.filling import inside, namespace
from benchmarks.survival.folders import faults
from benchmarks.survival.runs import WarmBench
from benchmarks.survival.together import together
from robustbench_meta.data.array_cache import cache_dir

SMALL = (
    "--profile", "smoke", "-l", "maml", "-a", "none", "-a", "fgsm", "--meta-steps", "12", "--episodes", "16", "--query",
    "1", "--tasks-per-step", "2", "--device", "cpu", "--jobs", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def small(registry):
    """How all are called; the pictures, which take longer to draw than the rest, are there."""
    registry.make("dataset", "glyphs", {}).load(None)
    return WarmBench(cache_dir(), SMALL, keep_seconds=0.0)


@pytest.fixture(scope="module")
def reference(small, tmp_path_factory):
    """What a run leaves that nothing disturbs."""
    folder = tmp_path_factory.mktemp("reference") / "results"
    small.finish(folder)
    return folder


def kept(results, pattern):
    return any(results.glob(pattern))


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_leaderboard(small, reference, tmp_path):
    results, killed = tmp_path / "killed", 0
    for sign in ("progress/*.safetensors", "progress/*-*.safetensors", "records/*.json"):
        run = small.start(results)
        run.until(partial(kept, results, sign))
        killed += run.code is None
        run.kill()
    small.finish(results)
    assert killed >= 2, "the runs were over before they could be killed"
    assert not faults(results, reference)


def test_runs_on_one_folder_do_all_of_it_once_though_one_is_killed(small, tmp_path):
    _, wrong = together([small] * 3, tmp_path, "together", step=1)
    assert not wrong, "\n".join(wrong)
    assert not kept(tmp_path / "together", "progress/[!.]*")


def test_a_full_disk_stops_a_run_cleanly_and_it_goes_on_when_there_is_room(small, reference, tmp_path):
    if namespace() is None:
        pytest.skip("file systems may not be mounted here, neither by unshare -m nor by unshare -rm")
    script = f"""
        from pathlib import Path
        from benchmarks.survival.filling import Disk, full
        from benchmarks.survival.runs import WarmBench

        if __name__ == "__main__":
            folder = Path({str(tmp_path)!r})
            bench = WarmBench(Path({str(small.cache)!r}), {SMALL!r}, keep_seconds=0.0)
            code, _, wrong = full(bench, Disk(folder / "disk"), 20480, Path({str(reference)!r}))
            raise SystemExit("\\n".join(wrong) if wrong else code)
        """
    over = inside(["-c", textwrap.dedent(script)])
    assert over.returncode == 2, "it went wrong as printed above, or 20 KiB were enough"
