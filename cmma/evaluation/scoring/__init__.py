"""`cmma score`: a metric on files that a user already has. One module per kind of input."""
