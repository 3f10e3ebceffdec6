"""Plans from benchmarks, and the planner's promise against what replays needed."""
