"""Products of sparse codes with dense matrices: `sparse` is what is called, `eager` and `cuda` do the work."""
