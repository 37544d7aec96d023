"""The loop that turns requests into outputs, and the doors to it."""
