"""What a latent stands for: examples, specialisation, concepts."""
