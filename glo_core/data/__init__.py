"""Images for training, and the order in which an epoch visits them."""
