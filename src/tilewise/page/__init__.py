"""The chat page: layout, words, what it shows, and the server that carries it.

Here: an HTTP client of the API with a face; gradio is imported nowhere else.
Not here: engines, models, the API's own routes.
"""
