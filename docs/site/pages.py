"""Pages of the site that are not below docs: what docs link to in the checkout, so that links work here and there.

A hook of MkDocs. Markdown of the checkout (the changelog, the published tables' page) becomes a page of its own; a
source file that some page links to becomes a page that shows it, a folder a page that lists it.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "README.md": "index.md",
    "benchmarks/speed.md": "speed.md",
    "results/published/README.md": "published.md",
    "results/published/checkpoints/glyphs-5w1s-adml.md": "cards/glyphs-5w1s-adml.md",
    "results/published/checkpoints/glyphs-5w1s-maml.md": "cards/glyphs-5w1s-maml.md",
}
"""Markdown of the checkout, and the page that it is."""
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".yml": "yaml", ".md": "markdown"}
PLAIN = {".csv", ".safetensors"}
"""Files that are copied as they are."""
FENCE = re.compile(r"^( *)(```+)[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(\]\()([^)\s:#]+)((?:#[^)\s]*)?\))")
SOURCE = "---\nsearch:\n  exclude: true\n---\n"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add a page for each file of the checkout that some page links to."""
    for path, page in PAGES.items():
        if page != "index.md":
            files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    pending = [target for file in list(files.documentation_pages()) for target in _outside(file)]
    added: set[str] = set()
    while pending:
        target = pending.pop()
        if target in added or target in PAGES:
            continue
        added.add(target)
        path = ROOT / target
        if path.suffix in PLAIN:
            files.append(File.generated(config, target, abs_src_path=str(path)))
        else:
            inside = _inside(path) if path.is_dir() else []
            files.append(File.generated(config, _page_of(target), content=_shown(target, inside)))
            pending += inside
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that leave docs to the pages that stand for what is there."""
    origin = _origin(page.file)
    if origin is None:
        return markdown

    def moved(link: re.Match[str]) -> str:
        target = _target(origin, link[2])
        if target is None:
            return link[0]
        there = posixpath.relpath(_page_of(target), posixpath.dirname(page.file.src_uri) or ".")
        return f"{link[1]}{there}{link[3]}"

    return "".join(part if code else LINK.sub(moved, part) for part, code in _parts(markdown))


def _origin(file: File) -> str | None:
    """Where in the checkout a page's text is; None of a page that was made here."""
    for path, page in PAGES.items():
        if page == file.src_uri and file.generated_by:
            return path
    return None if file.generated_by else f"docs/{file.src_uri}"


def _outside(file: File) -> Iterator[str]:
    """What a page links to outside of docs."""
    origin = _origin(file)
    if origin is not None:
        for part, code in _parts(file.content_string):
            for link in () if code else LINK.finditer(part):
                target = _target(origin, link[2])
                if target is not None and not target.startswith("docs/"):
                    yield target


def _target(origin: str, link: str) -> str | None:
    """The path in the checkout that a link leads to; None if it stays within docs already, or nothing is there."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))
    if target.startswith("..") or not (ROOT / target).exists():
        return None
    return None if origin.startswith("docs/") and target.startswith("docs/") else target


def _page_of(target: str) -> str:
    """The source of the page, or the file, that stands for a path of the checkout."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target in PAGES:
        return PAGES[target]
    path = ROOT / target
    return target if path.suffix in PLAIN else f"source/{target}{'/index' if path.is_dir() else ''}.md"


def _inside(folder: Path) -> list[str]:
    """What of a folder is shown: its folders and its sources."""
    found = (path for path in sorted(folder.iterdir()) if not path.name.startswith(("_", ".")))
    return [
        path.relative_to(ROOT).as_posix()
        for path in found
        if path.suffix == ".py" or (path.is_dir() and (path / "__init__.py").is_file())
    ]


def _shown(target: str, inside: list[str]) -> str:
    """The page of a source file, or of a folder."""
    path = ROOT / target
    if path.is_dir():
        links = (f"- [`{posixpath.basename(each)}`]({_link(target, each)})" for each in inside)
        return "\n".join([SOURCE, f"# {target}/", "", *links, ""])
    text = path.read_text(encoding="utf-8")
    fence = "`" * max(3, 1 + max((len(ticks) for ticks in re.findall(r"`+", text)), default=0))
    return f"{SOURCE}\n# {target}\n\n{fence}{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def _link(folder: str, target: str) -> str:
    return posixpath.relpath(_page_of(target), posixpath.dirname(_page_of(folder)))


def _parts(markdown: str) -> Iterator[tuple[str, Any]]:
    """The text, cut where fences begin and end: each part, and whether it is code."""
    begin = 0
    for fence in FENCE.finditer(markdown):
        yield markdown[begin : fence.start()], False
        yield fence[0], True
        begin = fence.end()
    yield markdown[begin:], False
