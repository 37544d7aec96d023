"""Transport: keys, limits, ids, bodies, event streams, hosts and connections.

Here: what any ASGI application behind our gateway needs; only `routes` knows that there is an engine.
Not here: OpenAI's fields, prompts, answers.
"""
