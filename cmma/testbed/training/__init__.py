"""How the small models of the testbed were made."""
