"""Check the installed distribution, from an empty folder: `python -I - CHECKOUT < check_installed.py`."""

import subprocess
import sys
from importlib import metadata
from pathlib import Path

CHECKOUT, BENCH = Path(sys.argv[1]), Path(sys.executable).with_name("bench")


def bench(*arguments: str) -> str:
    """What a `bench` command prints; fails when it fails."""
    print("$ bench", *arguments, flush=True)
    done = subprocess.run([BENCH, *arguments], stdout=subprocess.PIPE, text=True, check=True, stdin=subprocess.DEVNULL)
    return done.stdout


def main() -> None:
    """All checks."""
    files = metadata.files("robustbench_meta") or []
    tops = {file.parts[0] for file in files if file.parts[0] != ".." and not file.parts[0].endswith(".dist-info")}
    assert tops == {"robustbench_meta"}, f"in site-packages: {tops}"

    found = bench("plugins")
    assert ", 0 failed" in found, found
    for source in sorted(CHECKOUT.glob("plugins/*/*.py")):
        if "@hookimpl" in source.read_text():
            assert f"{source.parent.name}.{source.stem}  built-in" in found, f"{source} was not found:\n{found}"
    listed = bench("list")
    for name in ("maml", "adml", "fgsm", "pgd", "glyphs", "conv4"):
        assert f"\n{name} " in listed, listed

    shown = bench("run", "--profile", "smoke", "--device", "cpu")
    print(shown)
    rows = Path("results/leaderboard.csv").read_text().splitlines()
    assert len(rows) > 1, rows
    assert {path.name for path in Path().iterdir()} == {"results"}, "a run writes into --results only"

    # files that are no modules: suites, templates of the report and of cards, examples
    assert "Nothing was written" in bench("run", "quick", "--dry-run")
    bench("report")
    (checkpoint, *_) = Path("results/checkpoints").glob("*.safetensors")
    assert "# How it was trained" in bench("card", str(checkpoint))
    assert "glyphs/5w1s/adml" in bench("zoo")
    assert " equal" in bench("verify", str(checkpoint))
    bench("plugins", "new", "attack", "of-mine")
    assert "of-mine" in bench("list", "attacks")


main()
