"""docs/leaderboard.md from the published tables: `python docs/site/leaderboard.py` writes it, a test compares."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.reporting.export.markdown import code
from robustbench_meta.reporting.wording import title
from robustbench_meta.results.leaderboard import COLUMNS
from robustbench_meta.results.tables import CLEAN, WORST, LeaderboardTable, Score, boards, shown

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "leaderboard.md"
PUBLISHED = ROOT / "results" / "published"
TABLES = {
    "glyphs-quick.csv": "Glyphs: the default run, with AQ and ProtoNet",
    "glyphs-zoo.csv": "Glyphs: all learners and defences",
    "omniglot-5w1s-auto.csv": "Omniglot, attacked by the ensemble",
    "omniglot-5w1s-group.csv": "Omniglot, three seeds, ADML's scenarios, inductive",
    "omniglot-5w1s-batch.csv": "Omniglot, three seeds, ADML's scenarios, transductive",
}
"""The published tables in the order of the page, with what they show."""
HEAD = """\
# Leaderboard

<!-- Written by docs/site/leaderboard.py from results/published; not by hand. -->

The [published tables](../results/published/README.md), with their commands and code versions, as
[`bench leaderboard`](command-line.md#output) shows them; accuracy in %. One seed: ± does not include the luck
of training. Tables with [other settings](results.md#what-makes-rows-comparable) are not comparable.
"""
DEFAULTS = {"precision": "float32", "surrogate": "none", "warm_start": ""}
"""Of columns that older tables do not have."""


def page() -> str:
    """The page."""
    return "\n".join([HEAD, *(block for name, told in TABLES.items() for block in _section(name, told))])


def read(path: Path) -> pd.DataFrame:
    """A published table; what older ones lack is filled in."""
    texts = dict.fromkeys(("eps", "flags", "warm_start"), object)
    frame = pd.read_csv(path, dtype=texts, keep_default_na=False, na_values=[""])
    for name in COLUMNS:
        if name not in frame:
            frame[name] = DEFAULTS.get(name, float("nan"))
    return frame.assign(**{name: frame[name].fillna("") for name in texts})[COLUMNS]


def _section(name: str, told: str) -> Iterator[str]:
    frame = read(PUBLISHED / name)
    yield f"## {told}\n"
    episodes, seeds = frame["episodes"].iloc[0], frame["seed"].nunique()
    yield (
        f"{episodes} test episodes, {seeds} seed{'s' if seeds > 1 else ''}, {frame['device'].iloc[0]}: "
        f"[{name}](../results/published/{name}).\n"
    )
    for board in boards(frame):
        yield from _table(board)


def _table(board: LeaderboardTable) -> Iterator[str]:
    first, second = title(board.setting)
    yield f"**{first}**<br>{second}\n"
    ranked = bool(board.ranks)
    heads = [
        *(["#"] if ranked else []),
        "learner",
        *(column if column in {CLEAN, WORST} else code(column) for column in board.columns),
    ]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * (1 + ranked)}{'---:|' * len(board.columns)}"
    for name, row in board.scores.items():
        cells = [_cell(board, row[column], board.leads(name, column)) for column in board.columns]
        rank = [str(board.ranks.get(name, "–"))] if ranked else []
        yield f"| {' | '.join([*rank, code(name), *cells])} |"
    yield ""
    for flag, columns in board.doubts().items():
        where = "; ".join(f"{column}: {', '.join(map(code, names))}" for column, names in columns.items())
        yield f"- `!` [{code(flag)}](flags.md#{flag}) ({where}): {FLAGS[flag]}"
    if board.doubts():
        yield ""
    if board.shared:
        yield "All: " + ", ".join(f"[{code(flag)}](flags.md#{flag})" for flag in sorted(board.shared)) + "."
    yield ""


def _cell(board: LeaderboardTable, score: Score, bold: bool) -> str:
    if not score.seeds:
        return "–"
    text = f"**{score.text()}**" if bold else score.text()
    doubt = "\u00a0!" if score.flags - board.shared else ""
    return f"{text}\u00a0±{shown(score.spread)}{doubt}" if score.spread == score.spread else f"{text}{doubt}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
