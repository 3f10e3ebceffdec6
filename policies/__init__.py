"""Allocation: which requests to randomize, and onto which model.

Importing the package fills the registries of gates and assignments.
"""

from equipoise.policies import assignments as assignments
from equipoise.policies import gates as gates
from equipoise.policies import river_bandit as river_bandit
