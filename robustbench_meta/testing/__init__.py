"""The conformance suite: a plugin's author hands over one object, and gets every check that the built-in ones get."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from robustbench_meta.contracts import AnyLearner, Attack, Backbone, Dataset, Plugin
from robustbench_meta.contracts.plugin import made_by
from robustbench_meta.errors import BenchError, unknown
from robustbench_meta.registry.registry import Registry, load_registry
from robustbench_meta.testing.attacks import AttackContract
from robustbench_meta.testing.backbones import BackboneContract
from robustbench_meta.testing.contract import Check, Contract, ContractError
from robustbench_meta.testing.datasets import DatasetContract
from robustbench_meta.testing.learners import LearnerContract

__all__ = ["Check", "ContractError", "checks_of", "verify"]

_CONTRACTS: dict[type[Plugin], type[Contract]] = {
    Attack: AttackContract, AnyLearner: LearnerContract, Backbone: BackboneContract, Dataset: DatasetContract,
}  # fmt: skip


def checks_of(
    plugin: Plugin | type[Plugin],
    *,
    backbone: str | None = None,
    data_root: Path | None = None,
    leave_out: Collection[str] = (),
    registry: Registry | None = None,
) -> list[Check]:
    """The clauses of the plugin's contract, each a check to call; it raises ContractError if the clause is broken.

    `str` of a check is the clause. A check whose clause makes no sense while another one is broken says nothing.
    The plugin runs on small real tasks, through the engine and the harness, on the CPU.

    Args:
        plugin: a learner, attack, data set or backbone with its options, or its class for the default ones.
        backbone: of a learner, as typed, if it needs one of its own.
        data_root: of a data set, as --data-root.
        leave_out: clauses that it breaks on purpose.
        registry: where the names that it gives are looked up; default: all plugins that are found from here.

    Raises:
        BenchError: it is no plugin, cannot be made without options, or there is no such clause to leave out.
    """
    plugins = registry if registry is not None else load_registry(strict=False)
    if isinstance(plugin, type) and issubclass(plugin, Plugin):
        name = plugin.__name__
        try:
            with made_by(plugins.make):
                plugin = plugin()
        except Exception as error:  # pydantic's, TypeError for an abstract class, or its own
            raise BenchError(
                f"{name} cannot be made without options: {' '.join(str(error).split())}; give every option "
                "a default, or hand over an instance"
            ) from error
    cls = next((contract for kind, contract in _CONTRACTS.items() if isinstance(plugin, kind)), None)
    if cls is None:
        raise BenchError(
            f"invalid {plugin!r}: expected a learner, attack, data set or backbone: an instance or class of "
            "robustbench_meta.contracts"
        )
    contract = cls(plugin, plugins, backbone=backbone, data_root=data_root)
    for name in leave_out:
        if name not in contract.clauses:
            raise BenchError(unknown("clause to leave out", name, contract.clauses))
    return [Check(contract, name) for name in contract.clauses if name not in leave_out]


def verify(
    plugin: Plugin | type[Plugin],
    *,
    backbone: str | None = None,
    data_root: Path | None = None,
    leave_out: Collection[str] = (),
    registry: Registry | None = None,
) -> None:
    """Check all clauses of the plugin's contract; arguments as of `checks_of`.

    Raises:
        ContractError: it lists every broken clause, with what was seen and what to do.
        BenchError: as `checks_of`.
    """
    checks = checks_of(plugin, backbone=backbone, data_root=data_root, leave_out=leave_out, registry=registry)
    broken = [text for check in checks if (text := check.problem()) is not None]
    if broken:
        raise ContractError(f"{checks[0].contract.title} breaks {len(broken)} of {len(checks)} clauses", broken)
