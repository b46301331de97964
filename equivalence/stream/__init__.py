"""Texts of any length, read in pieces by a model whose memory does not grow."""
