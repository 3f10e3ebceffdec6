"""Configuration of an experiment: typed structs, read from TOML, refused with every problem."""

from __future__ import annotations

from equipoise.agent.config.experiment import ExperimentConfig, config_from_dict
from equipoise.agent.config.parts import (
    BudgetConfig,
    CertifyConfig,
    DeclaredPolicy,
    GuardrailConfig,
    ModelConfig,
    PerUser,
    PolicyConfig,
    RewardConfig,
    SegmentBudget,
    SegmentConfig,
    SequenceName,
    UnitsConfig,
)
from equipoise.agent.errors import ConfigError

__all__ = [
    "BudgetConfig",
    "CertifyConfig",
    "ConfigError",
    "DeclaredPolicy",
    "ExperimentConfig",
    "GuardrailConfig",
    "ModelConfig",
    "PerUser",
    "PolicyConfig",
    "RewardConfig",
    "SegmentBudget",
    "SegmentConfig",
    "SequenceName",
    "UnitsConfig",
    "config_from_dict",
]
