"""Where the work of `index`, `convert` and `prepare` runs."""

from __future__ import annotations

from pydantic import Field

from lejepa_med.spec import Frozen


class ComputeConfig(Frozen):
    """Local processes by default; a Dask cluster by naming its scheduler."""

    workers: int = Field(
        default=0,
        ge=0,
        description="processes; 0: one per CPU core; 1: all in this process, where a crashing decoder ends the run",
    )
    scheduler: str | None = Field(
        default=None,
        description="address of a Dask scheduler, e.g. tcp://10.0.0.1:8786, whose workers see the same folders; "
        "null: processes on this machine (needs the extra `dask`)",
    )
