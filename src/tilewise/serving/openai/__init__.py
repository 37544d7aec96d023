"""OpenAI's API: what clients may send, and answers as its objects and events.

Here: one file a route, and `schema` for the fields.
Not here: keys and limits (`serving.http`), engines other than through `serving.async_engine`.
"""
