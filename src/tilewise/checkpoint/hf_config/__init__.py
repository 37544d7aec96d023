"""config.json to a `ModelConfig`: one file a configuration class, named as the checkpoint names it.

Here: official spellings, official defaults, and refusals by name of what could not be honoured.
Not here: weights, tensors, the computation that the facts are for.
"""

from tilewise.checkpoint.hf_config.model_config import SERVED, load_model_config

__all__ = ["SERVED", "load_model_config"]
