"""Settings of `select`: one protocol by which all runs are scored, and how their scores are ranked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from lejepa_med.config.views import ViewsConfig
from lejepa_med.spec import Frozen

PAPER_ALPHA = 0.4
"""arXiv 2511.08544, section 6: train_loss / lambda^alpha ranks runs best at this alpha."""


class SelectConfig(Frozen):
    """The same patients, crops, views and directions for every run, whatever it was trained with."""

    version: int = Field(1, description="of this file's format")
    cache: Path | None = Field(None, description="the runs' cache where it is now; null = where they say it is")
    views: ViewsConfig | None = Field(
        None, description="views that all runs are scored on; null = geometry of the first run, default intensities"
    )
    draws: int = Field(4, gt=0, description="draws of crops, views and directions that are averaged")
    patients: int | None = Field(
        64, ge=2, description="largest number of held-out patients in one draw: memory as for such a batch; null = all"
    )
    seed: int = Field(0, description="of crops, views and directions")
    num_slices: int = Field(1024, gt=0, description="random directions per draw")
    num_knots: int = Field(17, ge=3, description="trapezoid knots over [0, t_max]")
    t_max: float = Field(3.0, gt=0, description="largest frequency of the test")
    alpha: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description=f"score = total / lam^alpha; auto: {PAPER_ALPHA}, with probe results what fits all runs best",
    )
    budgets: tuple[int | Literal["all"], ...] = Field(
        ("all",), description="probe results: labels per class that are compared, numbers or all"
    )
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
