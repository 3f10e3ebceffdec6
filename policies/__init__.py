"""Allocation: which requests to randomize, and onto which model.

gates         which: `fixed-rate`, `uncertainty`, `active`, `contrast`
assignments   onto which: one file a policy, the ones to copy
river_bandit  assignments after river's bandits
registry      policies by name: a gate and an assignment
snapshot      what both look at; `posterior` and `design` compute from it
kernels       what both are frozen to: pure functions of a context
allocation    the frozen pair
draw          from a uniform number to the model that is served

Importing the package fills the registries of gates and assignments.
"""

from equipoise.policies import assignments as assignments
from equipoise.policies import gates as gates
from equipoise.policies import river_bandit as river_bandit
