"""The code table: a row per image, its projection, its optimizer, and its initial values."""
