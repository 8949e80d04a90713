"""The docs say what the code does."""

import ast
import csv
import importlib.util
import inspect
import itertools
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import typer
import typer.main

from robustbench_meta import __version__, hookspecs
from robustbench_meta.cli import app
from robustbench_meta.cli.new_plugin import EXAMPLES, write_plugin
from robustbench_meta.options import parse_choice
from robustbench_meta.registry.registry import load_registry

ROOT = Path(__file__).parents[2]
PUBLISHED = [ROOT / "results/README.md", *ROOT.glob("results/published/**/*.md")]
DOCS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *PUBLISHED])
TEXT = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in DOCS}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def anchors(text):
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def links():
    for name, text in TEXT.items():
        prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
        for target in re.findall(r"\]\(([^)\s]+)", prose):
            if "://" not in target and not target.startswith("mailto:"):
                yield pytest.param(name, target, id=f"{name}: {target}")


@pytest.mark.parametrize(("name", "target"), list(links()))
def test_links_lead_somewhere(name, target):
    path, _, anchor = target.partition("#")
    there = (ROOT / name).parent / path if path else ROOT / name
    assert there.exists(), f"{name} links to {target}"
    if anchor:
        assert anchor in anchors(there.read_text(encoding="utf-8")), f"{name} links to {target}"


@pytest.mark.parametrize("name", TEXT)
def test_files_that_are_named_exist(name):
    text = TEXT[name]
    for path in re.findall(
        r"(?<![\w/.])((?:examples|docs|plugins/\w+|robustbench_meta|tests)/[\w/]+\.(?:py|md))", text
    ):
        if not path.startswith("plugins/tests/"):  # what `bench plugins new` writes
            assert (ROOT / path).is_file(), f"{name} names {path}"


# -- commands --------------------------------------------------------------------------------------


def commands():
    """Every `bench …` in code: fenced, indented or inline, after `$ ` or not; and every `make run ARGS="…"`."""
    for name, text in TEXT.items():
        typed = {line.strip().removeprefix("$ "): False for line in text.replace("\\\n", " ").splitlines()}
        inline = dict.fromkeys(re.findall(r"`([^`\n]+)`", FENCE.sub("", text)), True)
        for line, mentioned in {**inline, **typed}.items():
            command = re.sub(r'^make run ARGS="([^"]*)".*$', r"bench run \1", line.replace("python cli.py ", "bench "))
            if re.match(r"bench [a-z-]", command) and not re.search(r"…|\[-|\b[A-Z]{3,}\b", command):
                yield pytest.param(command, mentioned, id=f"{name}: {command}")


def parsed(line):
    """The command that a line calls, and its arguments as the command line understands them."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|>&;")
    lexer.whitespace_split = True
    words = list(itertools.takewhile(lambda word: not set(word) <= set("|>&;"), lexer))[1:]
    command, context = typer.main.get_command(app), None
    while True:
        context = command.make_context(command.name, words, parent=context, resilient_parsing=False)
        if not hasattr(command, "resolve_command"):
            return command, context.params
        words = [*context._protected_args, *context.args]
        if not words:
            return command, context.params
        _, command, words = command.resolve_command(context, words)


@pytest.fixture(scope="module")
def with_examples():
    return load_registry(ROOT / "examples")


@pytest.fixture(scope="module")
def with_drafts(tmp_path_factory):
    """The examples, the tutorial's plugins, and one of each kind as `bench plugins new` writes it."""
    folder = tmp_path_factory.mktemp("drafts")
    for number, text in enumerate(plugins_in(TEXT["docs/tutorial.md"])):
        (folder / f"tutorial{number}.py").write_text(text, encoding="utf-8")
    for kind in EXAMPLES:
        write_plugin(kind, f"my-{kind}", folder, tuple)
    for path in ROOT.glob("examples/*.py"):
        shutil.copy(path, folder)
    return load_registry(folder)


@pytest.mark.parametrize(("line", "mentioned"), list(commands()))
def test_commands_are_understood(line, mentioned, with_drafts, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))  # --install-completion writes there
    try:
        command, given = parsed(line)
    except (typer.Exit, SystemExit):  # --help, --version, --install-completion
        return
    except Exception as error:
        if mentioned and type(error).__name__ in {"NoArgsIsHelpError", "MissingParameter"}:
            return  # a command is spoken of, without its arguments
        raise
    if command.name == "run":
        for kind in ("learner", "attack", "dataset", "backbone"):
            chosen = given.get(kind) or ()
            for text in [chosen] if isinstance(chosen, str) else chosen:
                choice = parse_choice(text)
                options = {key: value for key, value in choice.options.items() if (kind, key) != ("attack", "eps")}
                with_drafts.make(kind, choice.name, options)
    if command.name == "list" and given.get("name"):
        with_drafts.get(given["kind"].rstrip("s"), given["name"])


def test_the_docs_have_commands():
    assert len(list(commands())) >= 5


def test_make_targets_in_the_docs_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in TEXT.items():
        for target in re.findall(r"`make ([\w-]+)", text) + re.findall(r"^\$? ?make ([\w-]+)", text, re.MULTILINE):
            assert target in targets, f"{name} names `make {target}`"


# -- pages that are made ---------------------------------------------------------------------------------


def imported(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_leaderboard_page_shows_the_published_tables():
    maker = imported(ROOT / "docs/site/leaderboard.py")
    assert {path.name for path in maker.PUBLISHED.glob("*.csv")} == set(maker.TABLES)
    told = TEXT["docs/leaderboard.md"]
    assert told == maker.page(), "python docs/site/leaderboard.py writes it anew"
    for name in maker.TABLES:  # each number of attacked rows of one seed, read without any of our code
        with (maker.PUBLISHED / name).open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if len({row["seed"] for row in rows}) == 1:
            for row in rows:
                mean, ci95 = 100 * float(row["robust_accuracy"]), 100 * float(row["robust_ci95"])
                assert f"{mean:.1f}\u00a0±{ci95:.1f}" in told.replace("**", ""), (name, row["learner"], row["attack"])


def test_the_picture_of_admls_idea_shows_what_its_page_says():
    maker = imported(ROOT / "docs/pictures/adml_idea.py")
    tasks = maker.tasks()
    clean, attacked = (tasks["A"].optimum(eps) for eps in (0.0, maker.EPS))
    rest = {
        name: maker.descend(lambda w, f=f: f(tasks, w))[-1]
        for name, f in {"MAML": maker.maml, "ADML": maker.adml}.items()
    }
    assert attacked[0] < rest["ADML"][0] < rest["MAML"][0] < clean[0]
    for name, theta in rest.items():
        adapted = tasks["A"].adapted(theta, 0.0)
        losses = " | ".join(f"{tasks['A'].loss(adapted, eps):.3f}" for eps in (0.0, maker.EPS))
        assert f"| {name} | {losses} |" in TEXT["docs/explanation/adml.md"]
        for eps, best in ((0.0, clean), (maker.EPS, attacked)) if name == "ADML" else ((0.0, clean),):
            way = tasks["A"].adapted(theta, eps) - theta
            assert way @ (best - theta) > 0, f"{name} adapts towards the optimum at eps {eps}"


def test_every_page_is_in_the_navigation_of_the_site():
    nav = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE)
    made = set(imported_constants(ROOT / "docs/site/pages.py", "PAGES").values())
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    assert sorted(nav) == sorted(pages | made)


def imported_constants(path, name):
    """A constant of a module that cannot be imported here."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name:
            return ast.literal_eval(node.value)
    raise LookupError(name)


# -- hooks, plugins, versions ------------------------------------------------------------------------

HOOKS = {name: hook for name, hook in vars(hookspecs).items() if hasattr(hook, "robustbench_meta_spec")}


def signature(hook):
    return f"{hook.__name__}{inspect.signature(hook)}".replace("'", "")


@pytest.mark.parametrize("name", HOOKS)
def test_every_hook_is_documented_with_its_signature(name):
    assert f"- `{signature(HOOKS[name])}`\n" in TEXT["docs/plugins.md"]


def test_no_hook_is_documented_that_there_is_not():
    documented = re.findall(r"^- `(\w+)\(.*\) -> None`$", TEXT["docs/plugins.md"], re.MULTILINE)
    assert sorted(documented) == sorted(HOOKS)


def test_every_example_is_documented_and_loads(with_examples):
    files = sorted(ROOT.glob("examples/*.py"))
    assert [found.error for found in with_examples.found if found.origin.kind == "local"] == [None] * len(files)
    for path in files:
        assert f"](../examples/{path.name})" in TEXT["docs/plugins.md"]


def plugins_in(text):
    """The code blocks of a page that are whole plugins."""
    return [block for language, block in FENCE.findall(text) if language == "python" and "@hookimpl" in block]


@pytest.mark.parametrize("name", TEXT)
def test_plugins_in_code_blocks_load(name, tmp_path):
    blocks = plugins_in(TEXT[name])
    for number, text in enumerate(blocks):
        (tmp_path / f"block{number}.py").write_text(text, encoding="utf-8")
    found = [found for found in load_registry(tmp_path).found if found.origin.kind == "local"]
    assert [(each.error, bool(each.brought)) for each in found] == [(None, True)] * len(blocks)


def test_the_changelog_has_the_version():
    assert re.search(rf"^## \[{re.escape(__version__)}\] - (unreleased|\d{{4}}-\d\d-\d\d)$", TEXT["CHANGELOG.md"], re.M)


def test_the_python_that_is_asked_for_is_the_one_that_make_checks():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    major, minor = wanted.removeprefix(">=").split(".")
    assert f"sys.version_info < ({major}, {minor})" in (ROOT / "Makefile").read_text()
