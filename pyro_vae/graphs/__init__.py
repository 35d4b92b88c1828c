"""Recorded tensor operations: what a function of tensors does, as a graph that is cut up, compiled or replayed."""
