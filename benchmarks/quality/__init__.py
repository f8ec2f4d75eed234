"""Models × seeds beside plain baselines, on one data set, by one protocol; results that add up over time."""
