"""Write the three files of constraints anew: the versions that pip chooses today (`make constraints`).

One version of each distribution serves every supported Python: the one that suits the oldest. The newer Pythons that
are found must be able to use it; what only they need gets a marker, and so does what only Windows or macOS need.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {
    "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
}
OF_CUDA = re.compile(r"(nvidia|cuda)-.*|triton")
"""What only the CUDA builds of torch bring: torch requires the versions that it was built with."""
HEADER = """\
# The versions that were tested{what}, for every supported Python. Written by: make constraints
# Use it with: {use}
"""
ALONE = "# In an environment of its own: it cannot live beside torchattacks. docs/dependencies.md\n"
DOCS_TOOLS = ["mkdocs-material", "mkdocstrings[python]", "ruff", "twine"]
FILES = {
    "constraints.txt": HEADER.format(what=" together", use="pip install -c constraints.txt .")
    + "# torch has no build in its version, so that the one for your machine fits. nvidia-*, cuda-* and triton\n"
    "# are not here: torch itself requires the versions that it was built with. docs/dependencies.md\n",
    "constraints-audit.txt": HEADER.format(
        what=" of what audits the others", use="pip install -c constraints-audit.txt pip-audit"
    )
    + ALONE,
    "constraints-docs.txt": HEADER.format(
        what=" of what makes the docs site and checks uploads",
        use="pip install -c constraints-docs.txt " + " ".join(DOCS_TOOLS),
    )
    + ALONE,
}


class Environment:
    """A fresh virtual environment of one Python, in which pip resolves but installs nothing."""

    def __init__(self, version: str, folder: Path) -> None:
        self.version, self._folder, self._count = version, folder / version, 0
        python = shutil.which(f"python{version}")
        done = python and subprocess.run([python, "-m", "venv", self._folder], capture_output=True, check=False)
        if not done or done.returncode:
            raise FileNotFoundError(f"python{version} with venv")

    def resolve(self, requirements: Iterable[str], pins: Iterable[str] = ()) -> dict[str, dict[str, Any]]:
        """The metadata of everything that pip would install, by its normal name."""
        self._count += 1
        report, constraints = self._folder / f"{self._count}.json", self._folder / f"{self._count}.txt"
        constraints.write_text("\n".join(pins))
        pip = [self._folder / "bin/python", "-m", "pip", "install", "-qq", "--dry-run", "--ignore-installed"]
        subprocess.run([*pip, "--report", report, "-c", constraints, *requirements], cwd=ROOT, check=True)
        found = (entry["metadata"] for entry in json.loads(report.read_text())["install"])
        return {canonicalize_name(each["name"]): each for each in found}


def pin(requirements: list[str], oldest: Environment, others: list[Environment]) -> list[str]:
    """The lines of a constraints file for what these requirements bring."""
    chosen = oldest.resolve(requirements)
    lines = _lines(chosen, {})
    elsewhere = {platform: sorted(_missing(chosen, platform, f"{oldest.version}.0")) for platform in PLATFORMS}
    for platform, names in elsewhere.items():
        if names:
            more = oldest.resolve([*requirements, *names], lines.values())
            new = {name: data for name, data in more.items() if name not in lines}
            lines |= _lines(new, dict.fromkeys(new, f' ; sys_platform == "{platform}"'))
    for other in others:
        more = other.resolve(requirements, lines.values())
        new = {name: data for name, data in more.items() if name not in lines}
        lines |= _lines(new, dict.fromkeys(new, f' ; python_version >= "{other.version}"'))
    return [lines[name] for name in sorted(lines)]


def _lines(found: dict[str, dict[str, Any]], markers: dict[str, str]) -> dict[str, str]:
    return {
        name: f"{name}=={Version(data['version']).public}{markers.get(name, '')}"
        for name, data in found.items()
        if name != "robustbench-meta" and not OF_CUDA.fullmatch(name)
    }


def _missing(found: dict[str, dict[str, Any]], platform: str, version: str) -> set[str]:
    """What the distributions require on another platform only."""
    environment = {
        **default_environment(),
        "python_full_version": version,
        "python_version": version.rpartition(".")[0],
    }
    environment |= {**PLATFORMS[platform], "extra": ""}
    required = (Requirement(line) for data in found.values() for line in data.get("requires_dist", []))
    return {
        canonicalize_name(each.name)
        for each in required
        if canonicalize_name(each.name) not in found
        and not OF_CUDA.fullmatch(canonicalize_name(each.name))
        and each.marker
        and each.marker.evaluate(environment)
    }


def main() -> None:
    """Write the files; a Python that is not there is left out with a message, but for the oldest."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    with tempfile.TemporaryDirectory() as folder:
        environments = []
        for version in PYTHONS:
            try:
                environments.append(Environment(version, Path(folder)))
            except FileNotFoundError as error:
                if version == PYTHONS[0]:
                    sys.exit(f"make constraints needs {error}: the versions must suit the oldest supported Python")
                print(f"{error} was not found: the pins are not tried with it")
        oldest, *others = environments
        wanted = {
            "constraints.txt": [f".[{','.join(extras)}]"],
            "constraints-audit.txt": ["pip-audit"],
            "constraints-docs.txt": DOCS_TOOLS,
        }
        for name, requirements in wanted.items():
            lines = pin(requirements, oldest, others)
            (ROOT / name).write_text(FILES[name] + "\n".join(lines) + "\n", encoding="utf-8")
            print(f"{name}: {len(lines)} pins, resolved with Python {', '.join(each.version for each in environments)}")


if __name__ == "__main__":
    main()
