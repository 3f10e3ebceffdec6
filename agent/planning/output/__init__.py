"""A plan for people and programs: terminal, page, CSV."""
