"""config.json to a `ModelConfig`: one file a configuration class, named as the checkpoint names it.

Here: official spellings, official defaults, and refusals by name of what could not be honoured.
Not here: weights, tensors, the computation that the facts are for.
"""

from tilewise.checkpoint.hf_config.internvl_chat import SERVED, load_model_config
from tilewise.checkpoint.hf_config.section import load_json

__all__ = ["SERVED", "load_json", "load_model_config"]
