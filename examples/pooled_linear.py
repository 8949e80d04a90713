"""A backbone in one file: a linear layer on a coarse picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from pydantic import Field
from torch import nn

from robustbench_meta import hookimpl
from robustbench_meta.contracts import Backbone, Setting, with_head


class PooledLinear(Backbone):
    """Average the image over a coarse grid, then one linear layer."""

    # What is typed; `bench list` shows it with the first line above.
    name: ClassVar[str] = "pooled-linear"
    source: ClassVar[str] = "an example of robustbench_meta"

    # Options: typed as pooled-linear:grid=5, checked, and part of what identifies a result.
    grid: int = Field(7, ge=1, description="cells of the grid along each side")

    def obstacle(self, setting: Setting) -> str | None:
        """It averages over height and width."""
        return None if len(setting.shape) == 3 else f"it needs images; an example here has the shape {setting.shape}"

    def build(self, shape: tuple[int, ...], outputs: int | None) -> nn.Module:
        """[n, *shape] → [n, outputs], or → [n, channels·grid²] when `outputs` is None."""
        body = nn.Sequential(nn.AdaptiveAvgPool2d(self.grid), nn.Flatten())
        return with_head(body, (shape[0], self.grid, self.grid), outputs)


@hookimpl
def register_backbones(register: Callable[[type[Backbone]], None]) -> None:
    """Bring `pooled-linear`."""
    register(PooledLinear)
