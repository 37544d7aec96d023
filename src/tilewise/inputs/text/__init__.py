"""Text to token ids and back: tokenizer, prompt profiles, detokenizer, the form of an answer, its boxes.

Here: everything about words, for whichever front end asks.
Not here: pictures (`inputs.media`), HTTP, engines, torch.
"""
