"""Entry points: one command per stage."""
