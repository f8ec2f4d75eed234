"""Tools of all benchmarks: pinning, machine facts, confidence intervals, reports."""
