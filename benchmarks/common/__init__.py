"""What several benchmarks need: cores, machine facts, confidence intervals, tables."""
