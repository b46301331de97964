"""The cost meter: bytes and products that a call costs, counted; registers, compiled; time, modelled.

count.py         a context manager that counts what kernels (interpreter.py) and torch (operations.py) do
operators.py     the calls that are counted        least.py    the least that they could cost
worker.py        counts, where Triton interprets   counting.py, record.py   ask it, and take its answers
compiled.py      registers and instructions        model.py, cards.py       occupancy, time and rates
measure.py       times on a GPU                    command.py, table.py     what the command prints
"""

from .count import Cost, KernelCost, OperationCost, Product, count

__all__ = ["Cost", "KernelCost", "OperationCost", "Product", "count"]
