"""Mergeable sufficient statistics: the only state the estimators read (METHOD section 2)."""
