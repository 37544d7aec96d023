"""The Python interface: `pipeline`, conversations, batches with a progress bar.

Here: what LMDeploy's users call, over one engine that this process owns.
Not here: HTTP, event loops, torch at import time.
"""
