"""Which tokens and tiles go into the next step: the plan of a step, sequences, the scheduler.

Here: pure bookkeeping; a step is a function of the state and its budgets.
Not here: tensors, clocks, sockets.
"""
