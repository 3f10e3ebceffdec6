"""A problem out of what an experiment already knows: values, variances, and its certified sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.agent.inference.certificate import CertificateMoments
from equipoise.agent.planning.errors import PlanError
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import PlanRequest, read_request
from equipoise.agent.planning.shares import ASSIGNMENTS
from equipoise.agent.planning.state import PathState
from equipoise.agent.snapshots import sample_moments
from equipoise.store.batches import Floats

if TYPE_CHECKING:
    from equipoise.agent.reader import Reader

FEWEST_REWARDS = 20.0
"""Randomized rewards that every model needs before its mean and variance are planned with."""
