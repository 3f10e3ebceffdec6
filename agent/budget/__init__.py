"""What randomizing may cost: charges, hard stops, pacing over a horizon, and what was spent."""

from equipoise.agent.budget.ledger import Ledger as Ledger
from equipoise.agent.budget.purse import Purse as Purse
from equipoise.agent.budget.purse import Spending as Spending
