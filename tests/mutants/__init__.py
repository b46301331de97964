"""Mutation testing: the code that proofs and tests guard is changed in small ways, and each must be noticed.

A tool of the developers', not installed: `make mutants`. See docs/mutants.md.
"""
