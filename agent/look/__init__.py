"""A usage log as it lies there: what it shows, what it cannot show, and what would settle it."""
