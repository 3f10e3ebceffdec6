"""Gates: which requests to randomize. One file each; importing the package registers them."""

from equipoise.policies.gates import active as active
from equipoise.policies.gates import contrast as contrast
from equipoise.policies.gates import fixed_rate as fixed_rate
from equipoise.policies.gates import uncertainty as uncertainty
