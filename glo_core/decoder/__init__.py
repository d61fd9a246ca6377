"""Decoders: code -> image."""
