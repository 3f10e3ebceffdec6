"""Configuration of an experiment: typed structs, read from TOML, refused with every problem."""

from __future__ import annotations

from equipoise.agent.config.budget import BudgetConfig, PerUser, SegmentBudget
from equipoise.agent.config.certification import (
    CertifyConfig,
    DeclaredPolicy,
    SegmentConfig,
    SequenceName,
    UnitsConfig,
)
from equipoise.agent.config.error import ConfigError
from equipoise.agent.config.experiment import ExperimentConfig, config_from_dict
from equipoise.agent.config.guardrails import GuardrailConfig
from equipoise.agent.config.load import load_config
from equipoise.agent.config.parts import (
    ModelConfig,
    PolicyConfig,
    RewardConfig,
)

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
    "load_config",
]
