"""The protocol: episodes with confidence intervals, metrics, baselines, reports and plots."""
