"""The methods that ship, one file per protocol."""
