"""Writes a plugin to start from, a copy of an example under another name, with its test."""

from __future__ import annotations

import builtins
import keyword
import re
from collections.abc import Callable, Collection
from pathlib import Path

from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.options import NAME, NAMED
from robustbench_meta.registry.discovery import FOLDERS, is_built_in_folder

EXAMPLES = {
    "learner": "pixel-centroid", "attack": "sign-noise", "dataset": "gratings", "backbone": "pooled-linear",
}  # fmt: skip


def write_plugin(kind: str, name: str, folder: Path, taken: Callable[[], Collection[str]]) -> tuple[Path, Path]:
    """Write the plugin and its test; nothing is ever overwritten.

    Args:
        kind: of the plugin.
        name: of the plugin, as it is typed.
        folder: of its file; the test goes into `tests` there, which is no package, and so never taken for a plugin.
        taken: gives the names of its kind that other plugins bring; asked last, for it loads them.

    Returns:
        The files.

    Raises:
        BenchError: no such kind, no name for a plugin, a name that is taken, a file that is there already, or a folder
            that is none for plugins of one's own.
    """
    if kind not in EXAMPLES:
        raise BenchError(unknown("kind of plugin", kind.removesuffix("s"), EXAMPLES))
    if not NAME.fullmatch(name):
        raise BenchError(f"'{name}' cannot be the name of a plugin: expected {NAMED}, such as my-{kind}")
    if folder.exists() and not folder.is_dir():
        raise BenchError(f"--into {folder}: that is a file; expected a folder, which is made if it is not there")
    if folder.name in FOLDERS and is_built_in_folder(folder.parent):
        raise BenchError(f"--into {folder}: that is the folder of built-in plugins; yours go beside it: --into plugins")
    if name in taken():
        raise BenchError(f"the {kind} '{name}' is there already: choose another name; see `bench list {kind}s`")
    texts = _texts(kind, name, folder)
    file, test = texts
    for path in (file, test, file.with_suffix("")):
        if path.is_symlink() or path.exists():
            raise BenchError(f"{path} is there already, and is left as it is: choose another name, or remove it")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as opened:
            opened.write(text)
    return file, test


def _texts(kind: str, name: str, folder: Path) -> dict[Path, str]:
    """What the two files hold: the example's and its test's, in other names."""
    example = EXAMPLES[kind]
    text = _example(f"{example.replace('-', '_')}.py")
    test = _example("tests/test_sign_noise.py").replace('"attack"', f'"{kind}"')
    module = re.sub(r"[-.]", "_", name)
    module = module if module.isidentifier() and not keyword.iskeyword(module) else f"my_{module}"
    cls = _camel(name)
    is_free = cls.isidentifier() and not hasattr(builtins, cls) and not re.search(rf"\b{cls}\b", text + test)
    cls = cls if is_free else f"My{cls}"
    text = re.sub(rf"\b{example}\b", name, text).replace(_camel(example), cls)
    text = text.replace('"an example of robustbench_meta"', '"where it comes from: a paper, a project"')
    test = test.replace("sign-noise", name).replace("sign_noise", module).replace("SignNoise", cls)
    return {folder / f"{module}.py": text, folder / "tests" / f"test_{module}.py": test}


def _camel(name: str) -> str:
    return "".join(word[:1].upper() + word[1:] for word in re.split(r"[-._]+", name))


def _example(name: str) -> str:
    package = Path(__file__).parent.parent
    installed, checkout = package / "examples" / name, package.parent / "examples" / name
    return (installed if installed.is_file() else checkout).read_text("utf-8")
