"""The Cross-Modal Interaction Graph."""
