"""LaTeX with booktabs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from robustbench_meta.drawing import folded, title
from robustbench_meta.exports.sheets import Cell, Sheet

_TEXT = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "'": r"\textquotesingle{}", "`": r"\textasciigrave{}",
    "[": r"{[}", "]": r"{]}", "*": r"{*}",
    "ε": r"$\varepsilon$", "∞": r"$\infty$", "±": r"$\pm$", "−": r"$-$", "×": r"$\times$", "·": r"$\cdot$",
    "–": r"\textendash{}", "…": r"\dots{}", "α": r"$\alpha$", "β": r"$\beta$",
}  # fmt: skip
"""[ and * behind a line's end would be its arguments."""
_LIGATURES = re.compile(r"(?<=-)-|(?<=,),")
"""-- would be a dash, ,, a quotation mark; of the others, one letter is never left as it is."""


def escape(text: str) -> str:
    """Text as LaTeX prints it, whatever is in it; any blank is one space, and control characters are left out."""
    plain = (
        " " if letter.isspace() else letter
        for letter in text
        if letter.isspace() or unicodedata.category(letter) not in {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    )
    return _LIGATURES.sub(r"{}\g<0>", "".join(_TEXT.get(letter, letter) for letter in plain))


def latex(found: Iterable[Sheet], *, turned: bool = False) -> str:
    """The tables, each a float with a caption; `turned` makes attacks the rows."""
    blocks = [_table(sheet, number, turned) for number, sheet in enumerate(found, start=1)]
    body = "\n".join(blocks)
    head = [
        r"% Needs \usepackage{booktabs} and \usepackage[T1]{fontenc}; with LaTeX before 2020 \usepackage{textcomp}."
    ]
    if not body.isascii():
        head.append("% Names hold letters beyond ASCII: compile with lualatex or xelatex, in a font that has them.")
    return "\n".join([*head, "", body])


def _table(sheet: Sheet, number: int, turned: bool) -> str:
    first, columns, rows = sheet.turned() if turned else sheet.upright()
    heads = [_head(name) for name in columns]
    lines = [
        r"\begin{table}",
        r"  \centering\setlength{\belowcaptionskip}{4pt}",
        f"  \\caption{{{_caption(sheet)}}}",
        f"  \\label{{tab:robustness-{number}}}",
        r"  \small",
        f"  \\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"    \toprule",
        f"    {' & '.join([first, *heads])} \\\\",
        r"    \midrule",
        *(f"    {' & '.join([_name(name), *map(_number, row)])} \\\\" for name, row in rows.items()),
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
        "",
    ]
    return "\n".join(lines)


def _name(name: str) -> str:
    return rf"\texttt{{{escape(name)}}}" if name not in {"clean", "worst case"} else name


def _head(name: str) -> str:
    lines = folded(name, 12).split("\n")
    told = [_name(line) if name not in {"clean", "worst case"} else line for line in lines]
    stacked = r" \\ ".join(told)
    return told[0] if len(told) == 1 else rf"\shortstack[r]{{{stacked}}}"


def _number(cell: Cell) -> str:
    if not cell.mean:
        return r"\textendash{}"
    mean = rf"\textbf{{{cell.mean}}}" if cell.bold else cell.mean
    marks = ("!" if cell.doubted else "") + ("*" if cell.fewer else "")
    spread = rf" {{\scriptsize$\pm${cell.spread}}}" if cell.spread else ""
    return mean + spread + (rf"\rlap{{\textsuperscript{{{marks}}}}}" if marks else "")


def _caption(sheet: Sheet) -> str:
    """The setting, then what the numbers mean."""
    told = "; ".join(title(sheet.setting)).replace(" · ", ", ")
    return re.sub(" +", " ", escape(f"{told}. {' '.join(sheet.notes)}"))
