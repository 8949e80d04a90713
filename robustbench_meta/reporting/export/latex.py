"""LaTeX with booktabs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from robustbench_meta.reporting.table import TableCell, export_table
from robustbench_meta.reporting.wording import export_notes, folded, norm_layer, sides, threat
from robustbench_meta.results.tables import CLEAN, WORST, LeaderboardTable

_TEXT = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "[": r"{[}", "]": r"{]}", "*": r"{*}",
    "ε": r"$\varepsilon$", "∞": r"$\infty$", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$",
    "–": r"\textendash{}", "…": r"\dots{}", "α": r"$\alpha$", "β": r"$\beta$",
}  # fmt: skip
"""[ and * behind a line's end would be its arguments."""
_PROSE = {**_TEXT, "'": "'"}
TEXT_WIDTH = 345
"""Of article at 10 pt, in points."""
_PLAIN = frozenset({CLEAN, WORST})
"""Columns that are no names."""
_LIGATURES = re.compile(r"(?<=-)-|(?<=,),|(?<=')'")
"""-- would be a dash, ,, and '' quotation marks; of the others, one letter is never left as it is."""


def escape_latex(text: str, *, prose: bool = False) -> str:
    """Text as LaTeX prints it, whatever is in it; any blank is one space, and control characters are left out.

    In `prose`, ' is an apostrophe; in names it stays upright.
    """
    signs = _PROSE if prose else _TEXT
    plain = (
        " " if letter.isspace() else letter
        for letter in text
        if letter.isspace() or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    )
    return _LIGATURES.sub(r"{}\g<0>", "".join(signs.get(letter, letter) for letter in plain))


def latex(boards: Sequence[LeaderboardTable], *, turned: bool = False) -> str:
    """The tables, each a float with a caption; `turned` makes attacks the rows."""
    body = "\n".join(_table(board, number, turned) for number, board in enumerate(boards, start=1))
    head = [
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}; with LaTeX before 2020 \usepackage{textcomp}."
    ]
    head += [f"% {line[0].upper()}{line[1:]}." for line in too_wide(boards, turned=turned)]
    if not body.isascii():
        head.append("% Names hold letters beyond ASCII: compile with lualatex or xelatex, in a font that has them.")
    return "\n".join([*head, "", body])


def too_wide(boards: Sequence[LeaderboardTable], *, turned: bool) -> list[str]:
    """A line on the tables that do not fit the text of article, and on what would; none if all fit."""
    widths = [_width(board, turned) for board in boards]
    if max(widths, default=0) <= TEXT_WIDTH:
        return []
    widest, other = max(widths), max(_width(board, not turned) for board in boards)
    option = f"{'without' if turned else 'with'} --attacks-as-rows"
    if other <= TEXT_WIDTH:
        mend = f"{option} {other:.0f} pt"
    else:
        mend = (f"{option} {other:.0f} pt; " if other < widest else "") + "--attack and --learner choose fewer"
    if len(widths) == 1:
        return [f"the table is about {widest:.0f} pt wide, the text of article {TEXT_WIDTH} pt: {mend}"]
    count, which = sum(width > TEXT_WIDTH for width in widths), widths.index(widest) + 1
    return [
        f"{count} of {len(widths)} tables {'is' if count == 1 else 'are'} wider than the text of article "
        f"({TEXT_WIDTH} pt), table {which} about {widest:.0f} pt: {mend}"
    ]


def _width(board: LeaderboardTable, turned: bool) -> float:
    """About how wide a table is, in points, by the widths of Computer Modern's letters."""
    table = export_table(board, turned=turned)
    widths = [max(map(_breadth, [*table.heads, *table.names]))]
    for name, cells in table.columns.items():
        head = max(map(_breadth, [name] if name in _PLAIN else folded(name, 12).split("\n")))
        widths.append(max([head, *map(_number_breadth, cells)]))
    return sum(widths) + 12 * len(widths)


def _breadth(name: str) -> float:
    return (4.15 if name in {*_PLAIN, "learner", "attack"} else 4.73) * len(name)


def _number_breadth(cell: TableCell) -> float:
    digits = (5.3 if cell.bold else 4.63) * (len(cell.text) - 0.45)
    return digits + (3.1 + 6.4 + 4.0 * (len(cell.spread) - 0.45) if cell.spread else 0)


def _table(board: LeaderboardTable, number: int, turned: bool) -> str:
    table = export_table(board, turned=turned)
    lines = [
        r"\begin{table}",
        r"  \centering\setlength{\belowcaptionskip}{4pt}",
        f"  \\caption{{{_caption(board)}}}",
        f"  \\label{{tab:robustness-{number}}}",
        r"  \small",
        f"  \\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
        r"    \toprule",
        f"    {' & '.join([*table.heads, *map(_head, table.columns)])} \\\\",
        r"    \midrule",
        *(f"    {' & '.join([*map(_name, names), *map(_number, cells)])} \\\\" for names, cells in table.rows),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _name(name: str) -> str:
    return rf"\texttt{{{escape_latex(name)}}}" if name not in _PLAIN else name


def _head(name: str) -> str:
    lines = [line if line in _PLAIN else _name(line) for line in folded(name, 12).split("\n")]
    stacked = r" \\ ".join(lines)
    return stacked if len(lines) == 1 else rf"\shortstack[r]{{{stacked}}}"


def _number(cell: TableCell) -> str:
    mean = rf"\textbf{{{cell.text}}}" if cell.bold else escape_latex(cell.text)
    spread = rf" {{\scriptsize$\pm${cell.spread}}}" if cell.spread else ""
    return mean + spread + (rf"\rlap{{\textsuperscript{{{cell.marks}}}}}" if cell.marks else "")


def _caption(board: LeaderboardTable) -> str:
    """The setting, then what the numbers mean; names are set as such."""
    setting = board.setting
    precision = "" if setting["precision"] == "float32" else f", {setting['precision']}"
    recipe = f"({norm_layer(setting)}, {setting['inference']}{precision}), {setting['meta_steps']:,} meta-steps;"
    scene = sides(setting)
    if setting["query"] == "transfer":  # the surrogate is a name
        scene = sides({**setting, "surrogate": ""}) + _name(setting["surrogate"])
    sentences = [
        f"{_name(setting['dataset'])}, {setting['way']}-way {setting['shot']}-shot; {_name(setting['backbone'])} "
        + escape_latex(recipe, prose=True),
        "no attack." if setting["threat_norm"] == "none" else f"{escape_latex(threat(setting))}, {scene}.",
        *(escape_latex(note, prose=True) for note in export_notes(board)),
    ]
    return re.sub(" +", " ", " ".join(sentences))
