"""Reconstruction losses: two batches of images -> one loss per image."""
