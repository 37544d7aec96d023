"""What clients may send, field by field: OpenAI's API with the extras that LMDeploy's and vLLM's users know.

Here: one file a route; a field is honoured, a documented no-op, or refused by name. A new field is added here.
Not here: what messages hold (`inputs.conversation`), how a setting is carried out.
"""
