"""Certified inference: bounds that hold at every moment (METHOD section 4)."""
