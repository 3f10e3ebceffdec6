"""The kernels frozen rules are made of. Importing the package registers every kind."""

from equipoise.policies.kernels.base import AssignmentKernel as AssignmentKernel
from equipoise.policies.kernels.base import RateKernel as RateKernel
from equipoise.policies.kernels.base import decode_assignment_kernel as decode_assignment_kernel
from equipoise.policies.kernels.base import decode_rate_kernel as decode_rate_kernel
from equipoise.policies.kernels.best_draw_shares import BestDrawShares as BestDrawShares
from equipoise.policies.kernels.constant_rate import ConstantRate as ConstantRate
from equipoise.policies.kernels.constant_shares import ConstantShares as ConstantShares
from equipoise.policies.kernels.cuts import Cuts as Cuts
from equipoise.policies.kernels.cuts import CutShares as CutShares
from equipoise.policies.kernels.quadratic import QuadraticForms as QuadraticForms
from equipoise.policies.kernels.residual_scale import ResidualScale as ResidualScale
from equipoise.policies.kernels.scored_rate import ScoredRate as ScoredRate
from equipoise.policies.kernels.scored_rate import calibrated as calibrated
