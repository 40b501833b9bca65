"""Activation records: which tokens are kept, how they are captured, how training reads them back."""
