"""The dataset on disk, and how a file becomes its pixels. Without PyTorch, so that a decoding task starts at once."""
