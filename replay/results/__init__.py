"""What the runs of a sweep say: averages, summary, headline, terminal tables."""
