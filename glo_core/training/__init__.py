"""Training: one loop for one process, torchrun and Ray Train."""
