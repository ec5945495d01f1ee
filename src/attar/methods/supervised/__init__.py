"""Training with labels: teachers for distillers, and the upper line of comparisons."""
