"""The command line: its grammar, its commands, and the chat in a terminal.

Here: flags into configurations, errors into one line; commands import what they need when they run.
Not here: anything that another room could want to import.
"""
