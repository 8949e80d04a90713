"""The leaderboard as LaTeX, Markdown, JSON and CSV."""

import io
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_meta.evaluation.flags import FLAGS
from robustbench_meta.reporting.export.latex import TEXT_WIDTH, latex
from robustbench_meta.reporting.export.latex import escape_latex as latex_escape
from robustbench_meta.reporting.export.markdown import code, markdown
from robustbench_meta.reporting.export.markdown import escape_markdown as markdown_escape
from robustbench_meta.reporting.table import export_table
from robustbench_meta.reporting.wording import export_notes
from robustbench_meta.results.leaderboard import read, write
from robustbench_meta.results.pairwise import judged
from robustbench_meta.results.tables import LeaderboardTable, Score, boards
from tests.helpers.command_line import bench, told
from tests.helpers.records import answers, clean_record, record, stored

SETTING = {
    "dataset": "d", "way": 5, "shot": 1, "backbone": "b", "norm": "none", "inference": "inductive", "episodes": 100,
    "precision": "float32", "meta_steps": 10, "tasks_per_step": 4, "threat_norm": "linf", "eps": "0.1",
    "support": "clean", "query": "adv", "surrogate": "none", "queries": 5,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A and B are equal but for chance, C is 20 points behind, D has no number under PGD."""
    clean = answers(0.95, seed=9)
    stored(
        tmp_path,
        *(record(answers(mean, seed=seed), clean=clean, learner=name, attack=attack)
          for name, mean, seed in (("a", 0.5, 1), ("b", 0.505, 2), ("c", 0.3, 3)) for attack in ("fgsm", "pgd")),
        record(answers(0.4, seed=4), clean=clean, learner="d", attack="fgsm"),
        clean_record(clean, learner="a"),
        record(answers(0.5, seed=5), clean=clean, learner="a", attack="fgsm", eps=0.2),
    )  # fmt: skip
    return tmp_path


# -- what is bold ----------------------------------------------------------------------------------


def test_bold_is_all_that_cannot_be_told_apart_from_the_best(folder):
    from robustbench_meta.results.store import Store

    frame, samples = read(Store(folder))
    made = next(each for each in judged(frame, samples) if each.setting["eps"] == "0.1")
    table = {column: dict(zip(made.scores, cells, strict=True)) for column, cells in export_table(made).columns.items()}
    bold = {column: {name for name, cell in cells.items() if cell.bold} for column, cells in table.items()}
    assert bold["fgsm"] == bold["pgd"] == {"a", "b"}
    assert bold["clean"] == {"a", "b", "c", "d"}, "all answered alike"
    board = next(each for each in boards(frame) if each.setting["eps"] == "0.1")
    assert bold["worst case"] == {name for name, rank in board.ranks.items() if rank == 1}
    assert table["pgd"]["d"].text == table["worst case"]["d"].text == "–"
    assert table["pgd"]["a"].text == board.scores["a"]["pgd"].text()
    assert "cannot be told apart" in " ".join(export_notes(made))


def test_a_learner_alone_is_not_bold(folder):
    done = bench("export", folder, "--learner", "a", "--format", "latex")
    assert done.code == 0
    assert r"\textbf" not in done.out
    assert "Bold" not in done.out


# -- LaTeX -----------------------------------------------------------------------------------------

COMMANDS = {
    r"\textbackslash{}": "\\", r"\{": "{", r"\}": "}", r"\$": "$", r"\&": "&", r"\#": "#", r"\%": "%", r"\_": "_",
    r"\textasciicircum{}": "^", r"\textasciitilde{}": "~", r"\textless{}": "<", r"\textgreater{}": ">",
    r"\textbar{}": "|", r"\textquotedbl{}": '"', r"\textquotesingle{}": "'", r"\textasciigrave{}": "`",
    "{[}": "[", "{]}": "]", "{*}": "*", "{}": "",
}  # fmt: skip
TOKEN = re.compile("|".join(sorted(map(re.escape, COMMANDS), key=len, reverse=True)) + r"|[^\\{}$&#%_^~<>|\"'`\[\]*]")


def printed(text):
    """What LaTeX prints: every sign must be known or harmless; fails on any other."""
    tokens, place = [], 0
    while place < len(text):
        found = TOKEN.match(text, place)
        assert found, f"LaTeX would not print {text[place:]!r} as it is"
        tokens.append(COMMANDS.get(found[0], found[0]))
        place = found.end()
    return "".join(tokens)


@given(st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=40))
def test_latex_prints_ascii_as_it_is(text):
    shown = latex_escape(text)
    assert printed(shown) == text
    assert "--" not in shown
    assert ",," not in shown


@given(st.text(max_size=60))
def test_latex_gets_no_control_characters_lines_or_open_braces(text):
    shown = latex_escape(text)
    assert "\n" not in shown
    assert "%" not in shown.replace(r"\%", "")
    assert shown.isprintable()
    depth = 0
    for letter in re.sub(r"\\[{}]", "", shown):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0


def test_captions_set_names_as_names_and_sentences_as_sentences(folder):
    text = bench("export", folder, "--eps", "0.1", "--format", "latex").out
    (caption,) = re.findall(r"\\caption{(.*)}\n", text)
    assert caption.startswith(r"\texttt{d}, 2-way 1-shot; \texttt{b} (no norm, inductive), 10 meta-steps;")
    assert "Holm's correction" in caption
    assert "textquotesingle" not in caption
    assert latex_escape("it's") == r"it\textquotesingle{}s"
    assert latex_escape("''" + "'", prose=True) == "'{}'{}'"


def test_captions_say_what_flags_mean(tmp_path):
    clean = answers(0.9, 30)
    stored(tmp_path, *(record(answers(0.5, 30, seed=n), clean=clean, attack=name, flags=["few-episodes", *flags])
                       for n, (name, flags) in enumerate({"fgsm": [], "pgd": ["not-converged"]}.items())))  # fmt: skip
    for format in ("latex", "markdown"):
        text = bench("export", tmp_path, "--format", format).out
        assert f"All: few-episodes ({FLAGS['few-episodes']})." in text
        assert f"! not-converged ({FLAGS['not-converged']}): maml under pgd." in text


def test_latex_has_a_booktabs_table_for_each_board(folder):
    text = bench("export", folder, "--format", "latex").out
    assert text.startswith("% Needs \\usepackage{booktabs}")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == text.count(r"\toprule") == 2
    for tabular in re.findall(r"\\begin{tabular}{l(r+)}(.*?)\\end{tabular}", text, re.DOTALL):
        rows = [line for line in tabular[1].splitlines() if line.endswith(r"\\")]
        assert {row.count("&") for row in rows} == {len(tabular[0])}


def test_attacks_as_rows_are_the_same_cells(folder):
    upright = bench("export", folder, "--eps", "0.1").out
    turned = bench("export", folder, "--eps", "0.1", "--attacks-as-rows").out
    cells = [
        [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
        for text in (upright, turned)
    ]
    one, two = ([row[1:] for row in table[2:]] for table in cells)
    assert [list(column) for column in zip(*one, strict=True)] == two


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles_whatever_the_names(tmp_path):
    names = ["a$b_c^d{e}\\x", "<b>&amp;|%#~", "[1] *", "\\input{/etc/passwd}", 'it\'s "so" `q` ?` !` --- ,,']
    row = {"clean": Score(50, 1, 2), names[0]: Score(1, math.nan, 1, frozenset({"no-effect"}))}
    board = LeaderboardTable(SETTING | {"dataset": names[0]}, ["clean", names[0]], dict.fromkeys(names, row), {},
                             leaders={"clean": names})  # fmt: skip
    body = latex([board]) + latex([board], turned=True)
    packages = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{packages}\n{body}\n\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-draftmode", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, check=False,
        capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]


NAMES = ["fgsm", "pgd", "apgd", "square", "cw", "fab", "autoattack:eps_iter=0.02"]


def board_of(attacks, learners=("maml", "protonet", "adml"), spread=1.2, dataset="d"):
    columns = ["clean", *NAMES[:attacks], "worst case"]
    row = dict.fromkeys(columns, Score(85.3, spread, 1))
    leaders = dict.fromkeys(columns, learners)
    return LeaderboardTable(SETTING | {"dataset": dataset}, columns, dict.fromkeys(learners, row), {}, {}, leaders)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_the_widths_of_tables_are_those_that_latex_gives_them(tmp_path):
    cases = [(board_of(number), turned) for number in range(2, 8) for turned in (False, True)]
    one = ("maml:steps=10,alpha=0.05",)
    cases += [(board_of(number, one, spread), False) for number in (2, 4) for spread in (math.nan, 10.2)]
    bodies = [latex([board], turned=turned) for board, turned in cases]
    measured = "".join(bodies).replace(r"\begin{tabular}", r"\sbox0{\begin{tabular}").replace(
        r"\end{tabular}", r"\end{tabular}}\typeout{WIDTH \the\wd0}"
    )  # fmt: skip
    packages = r"\documentclass{article}\usepackage[T1]{fontenc}\usepackage{booktabs}\begin{document}"
    (tmp_path / "t.tex").write_text(f"{packages}\\typeout{{TEXT \\the\\textwidth}}\n{measured}\n\\end{{document}}\n")
    done = subprocess.run(
        ["pdflatex", "-draftmode", "-interaction=nonstopmode", "t.tex"], cwd=tmp_path, check=False, capture_output=True,
        text=True, errors="replace",
    )  # fmt: skip
    assert [float(text) for text in re.findall(r"TEXT ([\d.]+)pt", done.stdout)] == [TEXT_WIDTH]
    widths = [float(width) for width in re.findall(r"WIDTH ([\d.]+)pt", done.stdout)]
    beside = {(len(board.columns), turned): width for (board, turned), width in zip(cases[:12], widths, strict=False)}
    for (board, turned), width, body in zip(cases, widths, bodies, strict=True):
        found = re.search(r"% The table is about (\d+) pt wide.*: with --attacks-as-rows (\d+) pt", body)
        close = abs(width - TEXT_WIDTH) < 0.015 * TEXT_WIDTH
        assert close or (found is not None) == (width > TEXT_WIDTH), (board.columns, width)
        if found:
            assert int(found[1]) == pytest.approx(width, rel=0.015)
            assert len(board.scores) < 3 or int(found[2]) == pytest.approx(
                beside[len(board.columns), not turned], rel=0.015
            )
    assert 0 < sum("% The table is about" in body for body in bodies) < len(bodies)


def test_a_table_that_is_too_wide_says_what_makes_it_fit():
    assert "pt wide" not in latex([board_of(2)])
    told_ = latex([board_of(1), board_of(5)])
    assert "% 1 of 2 tables is wider than the text of article (345 pt), table 2 about 4" in told_
    assert ": with --attacks-as-rows" in latex([board_of(5)])
    many = tuple(f"learner-of-a-long-name-{number}" for number in range(4))
    assert ": without --attacks-as-rows" in latex([board_of(1, many)], turned=True)
    assert "--attack and --learner choose fewer." in latex([board_of(6, many)])


def test_a_table_that_is_too_wide_is_told_on_stderr(tmp_path):
    clean = answers(0.9, 30)
    stored(tmp_path, *(record(answers(0.5, 30, seed=n), clean=clean, attack=name) for n, name in enumerate(NAMES)))
    done = bench("export", tmp_path, "--out", tmp_path / "t.tex")
    assert done.code == 0
    found = re.search(
        r"the table is about (\d+) pt wide, the text of article 345 pt: with --attacks-as-rows", told(done.err)
    )
    assert f"% The table is about {found[1]} pt wide" in (tmp_path / "t.tex").read_text()
    assert bench("export", tmp_path, "--out", tmp_path / "t.tex", "--attacks-as-rows").err == ""


# -- Markdown --------------------------------------------------------------------------------------


def columns(line):
    """How many cells GitHub finds: pipes that no backslash escapes, but for the outer two."""
    return len(re.findall(r"(?:\\[!-/:-@\[-`{-~]|[^|])*\|", line)) - 1


@settings(max_examples=50)
@given(st.lists(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20), min_size=1,
                max_size=4, unique=True))  # fmt: skip
def test_markdown_tables_have_as_many_cells_in_every_row(names):
    row = {"clean": Score(50, 1, 2), **{name: Score(1, math.nan, 1) for name in names}}
    columns_ = ["clean", *[name for name in names if name != "clean"]]
    board = LeaderboardTable(SETTING, columns_, dict.fromkeys(names, row), {}, leaders={"clean": names})
    for turned in (False, True):
        lines = [line for line in markdown([board], turned=turned).split("\n") if line.startswith("| ")]
        assert len({columns(line) for line in lines}) == 1
        assert len(lines) == 2 + (len(columns_) if turned else len(names))


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "[x](http://a.b)", "http://a.b", "a|b", "a\\|b", "``a", ":smile:", "www.a.de"]
)
def test_names_are_no_markup(name):
    shown = markdown_escape(name)
    assert not re.search(r"[<>\[\]|`]|://|:s|www\.", shown)
    assert code(name) == f"`{name}`" or not re.search(r"[<>\[\]|`\\]", code(name))


# -- CSV and JSON ----------------------------------------------------------------------------------


def test_csv_is_the_leaderboard(folder):
    from robustbench_meta.results.store import Store

    assert bench("export", folder, "--format", "csv").out == write(Store(folder)).read_text()


def test_json_has_the_rows_of_the_csv_and_null_for_what_is_missing(folder):
    told_ = json.loads(bench("export", folder, "--format", "json").out, parse_constant=pytest.fail)
    assert told_["format"] == 1
    table = pd.read_csv(io.StringIO(bench("export", folder, "--format", "csv").out), dtype=str, keep_default_na=False)
    assert len(told_["leaderboard"]) == len(table) == 9
    for row, line in zip(told_["leaderboard"], table.to_dict("records"), strict=True):
        assert list(row) == list(line)
        for name, value in row.items():
            if isinstance(value, float | int):
                assert float(line[name]) == value
            else:
                assert line[name] == (value or "")
    assert [row["rank"] for row in told_["leaderboard"]].count(None) == 2
    assert {point["eps"] for point in told_["curves"]} == {"0", "0.1", "0.2"}
    assert np.isfinite(told_["leaderboard"][0]["robust_ci95"])


# -- command ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "start"), [("tex", "% Needs"), ("md", "**d"), ("csv", "dataset,"), ("json", "{")])
def test_a_files_ending_says_the_format(folder, ending, start):
    done = bench("export", folder, "--out", folder / f"t.{ending}")
    assert done.code == 0, done.err
    text = (folder / f"t.{ending}").read_text(encoding="utf-8")
    assert text.startswith(start)
    assert f"t.{ending}" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "latx"], "unknown format 'latx': did you mean 'latex'?"),
        (["--out", "x.xlsx"], "say what to write there with --format csv|markdown|latex|json"),
        (["--format", "csv", "--attacks-as-rows"], "--attacks-as-rows is for markdown and latex"),
        (["--attack", "fgsn"], "did you mean 'fgsm'?"),
        (["--learner", "d", "--attack", "pgd"], "no finished cell has all that was chosen"),
    ],
    ids=str,
)
def test_what_cannot_be_exported_is_told(folder, arguments, message):
    done = bench("export", folder, *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in told(done.err)
