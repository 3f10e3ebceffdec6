"""What randomizing may cost: charges, hard stops, pacing over a horizon, and what was spent.

ledger  counts of what came and was randomized, a fold over decisions
purse   prices, charges and limits over the ledger; the rate that spends what is left
cost    what randomizing has cost so far
caps    models, users and segments at their limit, closed before the draw
"""

from equipoise.agent.budget.ledger import Ledger as Ledger
from equipoise.agent.budget.purse import Exhausted as Exhausted
from equipoise.agent.budget.purse import Purse as Purse
from equipoise.agent.budget.purse import Spending as Spending
