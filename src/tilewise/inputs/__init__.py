"""From words and pictures to requests, before any engine is asked.

Here: conversations, and the builder that joins the words of `text` with the pictures of `media`.
Not here: HTTP, engines, torch.
"""
