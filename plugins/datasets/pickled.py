"""Few-shot benchmarks as they are spread: pickles of images, one a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Dataset
from robustbench_meta.contracts.tasks import Splits
from robustbench_meta.data.copies import ABOUT, Copies
from robustbench_meta.data.image_folder import inner
from robustbench_meta.data.pickled import choose_series, read_series
from robustbench_meta.runtime.paths import find_folder, spelling


class Pickled(Dataset):
    """miniImageNet, CIFAR-FS or FC100 as pickles, read without executing anything that is in them."""

    name = "pickled"
    source = "layouts: Ren et al. 2018 (mini-imagenet-cache), Lee et al. 2019 (MetaOptNet)"
    eps: ClassVar = {"linf": "8/255", "l2": 3.0}

    path: str = Field("", description="the folder: absolute, below the data root, or from here")
    series: str | None = Field(
        None, description="which data set, if there are several: what its files begin with, as CIFAR_FS"
    )
    copies: Copies = Field("drop", description=ABOUT)

    def placed(self, root: Path | None) -> Dataset:
        """However its folder was typed."""
        return self.model_copy(update={"path": spelling(find_folder(self.name, self.path, root), root)})

    def load(self, root: Path | None) -> Splits:
        """Read the three files; images keep their size."""
        series = choose_series(inner(find_folder(self.name, self.path, root)), self.series or "")
        return read_series(series, f"pickled {series.name}", self.copies)


@hookimpl
def register_datasets(register: Callable[[type[Any]], None]) -> None:
    """Bring the benchmarks that come as pickles."""
    register(Pickled)
