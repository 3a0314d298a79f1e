"""kshot."""
