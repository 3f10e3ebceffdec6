"""What a frozen rule is made of: kernels, immutable data with a pure function of a context.

A kernel is *row-stable*: a row gives the same bits alone and inside any batch, so a decision can
be recomputed without knowing which requests it shared a call with. A kernel encodes to a dict
of JSON types whose `kind` says who decodes it; decoding restores it bit for bit. A new kind is
one class and one registration: of e(x) in `rates`, of pi(. | x) in `shares`, both over the
functions of a context in `context_forms`. Importing the package registers every kind.
"""

from equipoise.policies.kernels.context_forms import Cuts as Cuts
from equipoise.policies.kernels.context_forms import QuadraticForms as QuadraticForms
from equipoise.policies.kernels.context_forms import ResidualScale as ResidualScale
from equipoise.policies.kernels.rates import ConstantRate as ConstantRate
from equipoise.policies.kernels.rates import RateKernel as RateKernel
from equipoise.policies.kernels.rates import ScoredRate as ScoredRate
from equipoise.policies.kernels.rates import calibrated as calibrated
from equipoise.policies.kernels.rates import decode_rate_kernel as decode_rate_kernel
from equipoise.policies.kernels.shares import AssignmentKernel as AssignmentKernel
from equipoise.policies.kernels.shares import BestDrawShares as BestDrawShares
from equipoise.policies.kernels.shares import ConstantShares as ConstantShares
from equipoise.policies.kernels.shares import CutShares as CutShares
from equipoise.policies.kernels.shares import decode_assignment_kernel as decode_assignment_kernel
