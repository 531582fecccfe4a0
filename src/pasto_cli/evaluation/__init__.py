"""What is measured: benchmarks, metrics, intervals, reports."""
