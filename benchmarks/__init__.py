"""Side-by-side measurements: ours, theirs and the ratio, in one run on one machine."""
