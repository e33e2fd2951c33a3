"""Record format, index, step plan and Grain feed: batch k is a pure function of (dataset, seed, k)."""
