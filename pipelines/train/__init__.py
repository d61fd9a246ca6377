"""Training on Ray Train workers."""
