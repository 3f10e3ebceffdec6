"""The fold of the log and what it owns: open decisions, certified sums, what feeds the checks."""
