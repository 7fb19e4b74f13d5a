"""Frozen settings of every verb, and how they are read from YAML and overrides."""

from lejepa_med.config.compute import ComputeConfig
from lejepa_med.config.evaluation import BenchmarkConfig, FinetuneConfig, ProbeConfig
from lejepa_med.config.indexing import IndexSettings
from lejepa_med.config.loading import describe, dump_yaml, load_config, read_yaml, validate
from lejepa_med.config.planning import PlanConfig
from lejepa_med.config.preparing import PrepareConfig
from lejepa_med.config.pretraining import (
    HoldoutConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    ProjectorConfig,
)
from lejepa_med.config.selection import SelectConfig
from lejepa_med.config.views import ViewsConfig
from lejepa_med.errors import ConfigError
from lejepa_med.spec import Frozen

__all__ = [
    "BenchmarkConfig",
    "ComputeConfig",
    "ConfigError",
    "FinetuneConfig",
    "Frozen",
    "HoldoutConfig",
    "IndexSettings",
    "ModelConfig",
    "OptimConfig",
    "PlanConfig",
    "PrepareConfig",
    "PretrainConfig",
    "ProbeConfig",
    "ProjectorConfig",
    "SelectConfig",
    "ViewsConfig",
    "describe",
    "dump_yaml",
    "load_config",
    "read_yaml",
    "validate",
]
