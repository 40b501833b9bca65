"""One file per baseline; `base` says what a method is, `registry` builds those that a configuration names."""
