"""What people type who know other tools, and what it is called here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from robustbench_meta.errors import expected

UsageError: Any = typer.BadParameter.__mro__[1]  # typer keeps click's to itself

_RUN = "`bench run` trains, adapts, attacks and ranks at once, as in bench run --learner maml --attack pgd"
COMMANDS = {
    **dict.fromkeys(("train", "eval", "evaluate", "test", "attack", "benchmark", "start", "meta-train"), _RUN),
    **dict.fromkeys(("results", "show", "table", "rank", "ranks"), "`bench leaderboard DIR` shows the tables"),
    **dict.fromkeys(("attacks", "learners", "datasets", "backbones", "suites"), "`bench list {0}` shows them"),
    "download": "`bench data download NAME` does it",
}
OPTIONS = {
    **dict.fromkeys(("--epochs", "--iterations", "--steps"), "use --meta-steps N, of --tasks-per-step tasks each"),
    **dict.fromkeys(("--epsilon", "--epsilons"), "use --eps, as in --eps 8/255"),
    **dict.fromkeys(("--lr", "--learning-rate"), "it is an option of the learner, as in --learner maml:meta_lr=0.001"),
    **dict.fromkeys(("--batch-size", "--meta-batch-size"), "use --tasks-per-step N"),
    **dict.fromkeys(("--n-way", "--ways", "--num-ways"), "use --way N"),
    **dict.fromkeys(("--k-shot", "--shots", "--num-shots"), "use --shot N"),
    **dict.fromkeys(("--gpu", "--cuda"), "use --device cuda"),
    **dict.fromkeys(("--model", "--method"), "use --learner NAME, --backbone NAME"),
    **dict.fromkeys(("--num-workers", "--workers"), "use --jobs N"),
    "--norm": "it is the attack's: `bench list attacks --norm l2`",
    "--seeds": "use --seed, once for each: --seed 0 --seed 1",
    "--data": "use --dataset NAME, and --data-root DIR for where it is",
}
_REPEATED = {"--seed", "--learner", "--attack", "--eps", "--scenario"}


class Commands(TyperGroup):
    """The commands of `bench`; a typing error says what to type."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        words = [*ctx._protected_args, *ctx.args]
        try:
            return super().invoke(ctx)
        except UsageError as error:
            if error.message.startswith("Input should be "):  # pydantic's
                error.message = expected(error.message)
            hint = _hint(error, words)
            if hint is not None:
                error.message = f"{error.message.rstrip('.')}: {hint}."
                error.possibilities = []
            raise


def _hint(error: Any, words: Sequence[str]) -> str | None:
    command = next(iter(words), "")
    option = getattr(error, "option_name", None)
    if option is None and command in COMMANDS and "No such command" in error.message:
        return COMMANDS[command].format(command)
    if option == "--results":
        return f"the results folder is given without an option: bench {command} DIR"
    if option is not None:
        return OPTIONS.get(option)
    names = [name for name in getattr(getattr(error, "param", None), "opts", ()) if name.startswith("--")]
    for name in names:
        several = [value for at, value in typed(words) if at == name and "," in value]
        if several:
            each = " ".join(f"{name} {value.strip()}" for value in several[0].split(",") if value.strip())
            return f"for several, {each}" if name in _REPEATED else f"a run has one {name}: give a command for each"
    return None


def typed(words: Sequence[str]) -> list[tuple[str, str]]:
    """The options of a command line, each with what follows it."""
    pairs = [word.split("=", 1) if "=" in word else [word, *words[at + 1 : at + 2]] for at, word in enumerate(words)]
    return [(pair[0], pair[1]) for pair in pairs if len(pair) == 2]
