"""What a machine has of all that a run needs, and what to do about the rest; no check can end the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from robustbench_meta.doctor.finding import Finding, one_line
from robustbench_meta.doctor.folders import check_cache, check_data, check_results
from robustbench_meta.doctor.machine import check_cores, check_device, check_memory
from robustbench_meta.doctor.software import check_extras, check_gradients, check_plugins, check_torch, check_version
from robustbench_meta.errors import BenchError, brief


def examine(
    results: Path, data_root: Path | None = None, plugins: Path | None = None, *, local_plugins: bool = True
) -> Iterator[Finding]:  # fmt: skip
    """All findings, one after the other; nothing is left behind, and no exception comes of it.

    Args:
        results: the folder that runs would write to; it need not exist.
        data_root: where data sets are, if not in the user's folder.
        plugins: a folder with plugins.
        local_plugins: False to load none of a folder.
    """
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "version": check_version,
        "torch": check_torch,
        "device": check_device,
        "cores": check_cores,
        "memory": check_memory,
        "gradients": check_gradients,
        "plugins": partial(check_plugins, plugins, local_plugins),
        "data": partial(check_data, data_root),
        "results": partial(check_results, results),
        "cache": check_cache,
        "extras": check_extras,
    }
    for about, check in checks.items():
        try:
            yield from check()
        except (BenchError, OSError) as error:
            yield Finding(about, "wrong", one_line(str(error)) or brief(error))
        except Exception as error:  # whatever is wrong with a machine, the other checks are made
            yield Finding(about, "wrong", f"could not be looked at: {brief(error)}", "this is a bug: report it")
