"""Allocation: which requests to randomize, and onto which model.

gates         which: `fixed-rate`, `uncertainty`, `active`, `contrast`
assignments   onto which: one file a policy, the ones to copy
baselines     what bandit libraries and textbooks serve, to compare with
registry      policies by name: a gate and an assignment
snapshot      what both look at; `posterior` and `design` compute from it
kernels       what both are frozen to: pure functions of a context
allocation    the frozen pair
draw          from a uniform number to the model that is served

Importing the package fills the registries of gates and assignments.
"""

from equipoise.policies import assignments as assignments
from equipoise.policies import baselines as baselines
from equipoise.policies import gates as gates
