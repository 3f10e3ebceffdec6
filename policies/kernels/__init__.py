"""The kernels frozen rules are made of. Importing the package registers every kind."""

from equipoise.policies.kernels.base import AssignmentKernel as AssignmentKernel
from equipoise.policies.kernels.base import RateKernel as RateKernel
from equipoise.policies.kernels.base import decode_assignment_kernel as decode_assignment_kernel
from equipoise.policies.kernels.base import decode_rate_kernel as decode_rate_kernel
from equipoise.policies.kernels.context_forms import Cuts as Cuts
from equipoise.policies.kernels.context_forms import CutShares as CutShares
from equipoise.policies.kernels.context_forms import QuadraticForms as QuadraticForms
from equipoise.policies.kernels.context_forms import ResidualScale as ResidualScale
from equipoise.policies.kernels.rates import ConstantRate as ConstantRate
from equipoise.policies.kernels.rates import ScoredRate as ScoredRate
from equipoise.policies.kernels.rates import calibrated as calibrated
from equipoise.policies.kernels.shares import BestDrawShares as BestDrawShares
from equipoise.policies.kernels.shares import ConstantShares as ConstantShares
