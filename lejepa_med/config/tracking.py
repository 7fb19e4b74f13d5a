"""Where the numbers of a run go besides its own JSON lines."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from lejepa_med.spec import Frozen


class LoggingConfig(Frozen):
    tensorboard: Literal["auto"] | bool = Field(
        "auto", description="RUN/tensorboard; auto: where tensorboard is installed"
    )
    wandb: str | None = Field(
        None, description="project of Weights & Biases; stays on this machine unless WANDB_MODE=online; null = off"
    )
    mlflow: str | None = Field(None, description="tracking URI of MLflow, e.g. sqlite:///mlflow.db; null = off")
