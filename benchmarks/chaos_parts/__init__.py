"""What `benchmarks/chaos.py` attacks: a file for each kind of attack, each with a `measure` that returns rows.

Servers and pages are real processes of the embedded model on free ports of this machine.
"""
