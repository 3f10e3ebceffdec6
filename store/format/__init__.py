"""How a log is written down: SQL rows, frames of the tail, the mark."""
