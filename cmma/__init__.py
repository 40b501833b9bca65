"""Cross-Modal Mechanistic Analysis: interpretability of multimodal models, end to end."""

__version__ = "0.1.0"
