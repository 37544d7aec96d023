"""What is computed once and used again: KV blocks, prefixes, encoded tiles, and the tensors behind them.

Here: bookkeeping without torch (`blocks`, `prefix`, `tiles`), and the pools themselves (`tensors`).
Not here: when something is computed (`scheduling`) or how (`runner`).
"""
