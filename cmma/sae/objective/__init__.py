"""The training objective: pure losses, and the moving statistics behind its cross-modal terms (paper, Eq. 3-6)."""
