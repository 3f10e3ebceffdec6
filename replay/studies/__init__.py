"""Studies: one file each, with a question, a plan of streams and an analysis."""
