"""Versions, what is installed and what is not, plugins, and whether torch derives rightly."""

from __future__ import annotations

import importlib.metadata
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

from robustbench_meta import __version__
from robustbench_meta.doctor.finding import Finding, one_line
from robustbench_meta.errors import brief

EXTRAS = {"ray": "ray", "tensorboard": "tensorboard"}
"""Distributions that some options need, and the extra that brings each."""
MLFLOW = "mlflow-skinny"


def check_version() -> Iterator[Finding]:
    """Where this package runs, and what it needs and lacks."""
    where = Path(__file__).resolve().parents[1]
    python = f"Python {platform.python_version()} at {sys.executable or 'an unknown place'}"
    yield Finding("version", "ok", f"robustbench_meta {__version__} at {where}; {python}; {platform.platform()}")
    for lack in _lacking():
        yield Finding("packages", "wrong", lack, "python -m pip install --upgrade robustbench_meta")


def _lacking() -> Iterator[str]:
    """What is declared as needed and not installed, or in another version."""
    try:
        needed = importlib.metadata.requires("robustbench_meta") or []
    except importlib.metadata.PackageNotFoundError:
        return  # run from a folder, without being installed
    for line in needed:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        asked = f"{requirement.name}{requirement.specifier}"
        try:
            found = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield f"{requirement.name} is not installed; needed: {asked}"
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            yield f"{requirement.name} {found} is installed; needed: {asked}"


def check_torch() -> Iterator[Finding]:
    """Whether torch can be imported, and what it was built for."""
    try:
        import torch  # noqa: PLC0415  # takes seconds, and may fail
    except Exception as error:
        yield Finding("torch", "wrong", f"cannot be imported: {brief(error)}", "see https://pytorch.org/get-started")
        return
    build = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Finding("torch", "ok", f"{torch.__version__}, built {build}")


def check_extras() -> Iterator[Finding]:
    """What some options need besides, and how to get it: MLflow in a step of its own, see docs/trackers.md."""
    found, missing = [], []
    for distribution in [*EXTRAS, MLFLOW]:
        try:
            found.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(distribution)
    seen = f"{', '.join(found) or 'none'}; not installed: {', '.join(missing) or 'none'} (nothing else needs them)"
    extras = [EXTRAS[each] for each in missing if each in EXTRAS]
    steps = [f"'robustbench_meta[{','.join(extras)}]'"] if extras else []
    steps += [MLFLOW] if MLFLOW in missing else []
    yield Finding("extras", "ok", seen, " && ".join(f"python -m pip install {step}" for step in steps))


def check_plugins(folder: Path | None, local: bool) -> Iterator[Finding]:
    """What plugins are found, and which fail."""
    from robustbench_meta.registry import CollisionError, load_registry  # noqa: PLC0415  # with torch

    registry = load_registry(folder, local=local, strict=False)
    counts = ", ".join(f"{len(registry.names(kind))} {kind}s" for kind in ("learner", "attack", "dataset", "backbone"))
    failed = [found for found in registry.found if found.error]
    yield Finding("plugins", "ok", f"{len(registry.found) - len(failed)} loaded, {len(failed)} failed; {counts}")
    for found in failed:
        ends_runs = isinstance(found.cause, CollisionError) or found.origin.kind == "built-in"
        mend = "rename or remove one of them" if isinstance(found.cause, CollisionError) else (
            "reinstall robustbench_meta" if found.origin.kind == "built-in" else "bench plugins --debug shows where"
        )  # fmt: skip
        told = one_line(f"{found.origin.kind} {found.origin.where} failed: {found.error}")
        yield Finding("plugins", "wrong" if ends_runs else "note", told, mend)


def check_gradients() -> Iterator[Finding]:
    """Whether second derivatives come out right."""
    from robustbench_meta.selfcheck import meta_gradient_error  # noqa: PLC0415  # with torch

    error = meta_gradient_error()
    if error < 1e-6:
        yield Finding("gradients", "ok", "a meta-gradient through an inner step is what was derived by hand")
    else:
        yield Finding("gradients", "wrong", f"a meta-gradient is off by {error:.1g} of it", "install another torch")
