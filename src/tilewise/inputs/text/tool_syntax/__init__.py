"""How each family's language models write tools and their calls, one file a syntax.

Here: what only that syntax knows; everything else asks the file.
Not here: OpenAI's fields (`serving.openai.schema.tools`), the generic form of answers (`inputs.text.grammar`).
"""
