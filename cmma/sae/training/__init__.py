"""Training a dictionary: the loop, dead latents, checkpoints, ranks."""
