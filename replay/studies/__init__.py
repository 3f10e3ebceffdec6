"""The seed paper's experiments, one command each: which streams to run, and what they say."""
