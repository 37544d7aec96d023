"""The loop that turns requests into outputs, and the ways to reach it.

Here: messages and their wire, the loop, the clients in this process and in another.
Not here: prompts, HTTP; torch is imported by `core` alone.
"""
