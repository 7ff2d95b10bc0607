"""How good a model is: suites, pass@k, statistics, comparisons, bits per byte."""
