"""What is known: estimates, certified answers, status, recommendation. Nothing here writes."""
