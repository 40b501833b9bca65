"""Tables, figures and the feature browser."""
