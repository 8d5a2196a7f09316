"""Instruction counts of fixed call sequences, compared with recorded ones: `make bench-check`.

Times vary by tens of per cent on a shared machine; the count of instructions that valgrind executes for the same
sequence does not. What it cannot see: waiting, caches, the kernel's own work.
"""
