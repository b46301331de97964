"""The cost meter: bytes and products that a call costs, counted; registers, compiled; time, modelled.

count.py         a context manager that counts what kernels (interpreter.py) and torch (operations.py) do
operators.py     the recurrences that `mixerzoo cost` counts      least.py   the least they could cost
worker.py        counts in a process whose Triton interprets its kernels
table.py, command.py   what the command prints
"""

from .count import Cost, KernelCost, OperationCost, Product, count

__all__ = ["Cost", "KernelCost", "OperationCost", "Product", "count"]
