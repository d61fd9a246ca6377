"""Priors over codes, and the images of sampled codes."""
