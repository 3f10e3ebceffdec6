"""What stores in SQL databases share: the statements that every database understands."""
