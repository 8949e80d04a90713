"""What a data set must offer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from robustbench_meta.contracts.plugin import LossName, Plugin, eps_by_norm
from robustbench_meta.contracts.tasks import Splits


class Dataset(Plugin):
    """A data set with classes split into train, validation and test."""

    loss: ClassVar[LossName] = "cross_entropy"
    backbone: ClassVar[str] = "conv4"
    """The backbone when the user names none."""
    eps: ClassVar[Annotated[Mapping[str, float | str], AfterValidator(eps_by_norm)]] = {"linf": 0.1}
    """ε by norm when the user names none; also the default ε of training attacks (linf)."""
    way: ClassVar[Annotated[int, Field(ge=2)] | None] = None
    """The only way that it can give, if there is one."""

    def placed(self, root: Path | None) -> Dataset:
        """This data set with folders among its options written in one way: what results know it by."""
        return self

    @abstractmethod
    def load(self, root: Path | None) -> Splits:
        """Read (or make) the data; `root` is --data-root.

        Raises:
            DataError: missing, damaged, or unfit; the message says what was looked for and what to do.
        """
