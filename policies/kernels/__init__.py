"""The kernels frozen rules are made of. Importing the package registers every kind."""

from equipoise.policies.kernels.base import AssignmentKernel as AssignmentKernel
from equipoise.policies.kernels.base import RateKernel as RateKernel
from equipoise.policies.kernels.base import decode_assignment_kernel as decode_assignment_kernel
from equipoise.policies.kernels.base import decode_rate_kernel as decode_rate_kernel
from equipoise.policies.kernels.best_draw_shares import BestDrawShares as BestDrawShares
from equipoise.policies.kernels.constant_rate import ConstantRate as ConstantRate
from equipoise.policies.kernels.constant_shares import ConstantShares as ConstantShares
