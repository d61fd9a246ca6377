"""What every part of the model stands on; it knows no image, no code and no run."""
