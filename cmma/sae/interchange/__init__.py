"""Dictionaries of other libraries: reading SAELens, sparsify and dictionary_learning, writing SAELens and sparsify."""
