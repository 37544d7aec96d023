"""An engine behind HTTP: admission, streams of answers, metrics, and the server around them.

Here: what every HTTP API over an engine shares; `http` is the transport, `openai` the routes.
Not here: how an answer is computed, the chat page, torch at import time.
"""
