"""The fair comparison: labels, splits, encoders, probes, fine-tuning, intervals, and the report."""
