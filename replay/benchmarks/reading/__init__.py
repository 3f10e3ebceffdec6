"""Files of benchmarks read strictly, and made into complete tables of numbers."""
