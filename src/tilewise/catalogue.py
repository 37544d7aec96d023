"""The releases of the InternVL family as data: what each is made of, which are served, and how each was tested.

`tilewise list`, refusals by name and the choice of a prompt read it; nothing is computed from it. Sizes are the
published ones: a model runs by its own config.json alone.
"""

from dataclasses import dataclass

from tilewise.config import DecoderConfig, ModelConfig, VisionConfig
from tilewise.errors import UnsupportedModelError

_INTERNLM2_VOCAB = 92553
# Of the tokenizer with the family's nine added tokens; Qwen3's heads keep rows beyond it.
_QWEN2_VOCAB, _QWEN2_5_VOCAB, _QWEN3_VOCAB = 151655, 151674, 151936


@dataclass(frozen=True, slots=True)
class LanguageModel:
    """A backbone: the class that config.json names, and its sizes where it is served."""

    architecture: str
    decoder: DecoderConfig | None = None


@dataclass(frozen=True, slots=True)
class Release:
    """One checkpoint. `name` is its repository of OpenGVLab's; `tested` is empty where it is not served yet.

    `profile` names the prompt profile of `inputs.text.profiles` that is its own.
    """

    name: str
    version: str
    size: str
    language_model: str
    tower: str
    template: str
    profile: str = ""
    tested: str = ""

    @property
    def hub_id(self) -> str:
        """Where it is published."""
        return f"OpenGVLab/{self.name}"

    @property
    def architecture(self) -> str:
        """The class of its language model."""
        return LANGUAGE_MODELS[self.language_model].architecture

    @property
    def is_served(self) -> bool:
        """Whether this version can serve it."""
        return LANGUAGE_MODELS[self.language_model].decoder is not None

    def create_model(self) -> ModelConfig:
        """Its configuration as far as sizes go.

        Raises:
            UnsupportedModelError: it is not served.
        """
        decoder = LANGUAGE_MODELS[self.language_model].decoder
        if decoder is None:
            raise UnsupportedModelError(f"{self.name} is not served yet; tilewise list names the checkpoints that are.")
        return ModelConfig("InternVLChatModel", TOWERS[self.tower], decoder, template=self.template)


def _internlm2(hidden_size: int, num_layers: int, num_heads: int, num_kv_heads: int, inner: int) -> LanguageModel:
    head_dim = hidden_size // num_heads
    decoder = DecoderConfig(
        "internlm2", hidden_size, inner, num_layers, num_heads, num_kv_heads, head_dim, _INTERNLM2_VOCAB, 32768
    )
    return LanguageModel("InternLM2ForCausalLM", decoder)


def _qwen2(
    hidden_size: int, num_layers: int, num_heads: int, num_kv_heads: int, inner: int, vocab_size: int = _QWEN2_5_VOCAB
) -> LanguageModel:
    head_dim = hidden_size // num_heads
    decoder = DecoderConfig(
        "qwen2", hidden_size, inner, num_layers, num_heads, num_kv_heads, head_dim, vocab_size, 32768, use_qkv_bias=True
    )
    return LanguageModel("Qwen2ForCausalLM", decoder)


def _qwen3(hidden_size: int, num_layers: int, num_heads: int, inner: int) -> LanguageModel:
    decoder = DecoderConfig(
        "qwen3", hidden_size, inner, num_layers, num_heads, 8, 128, _QWEN3_VOCAB, 40960, use_qk_norm=True
    )
    return LanguageModel("Qwen3ForCausalLM", decoder)


TOWERS = {
    "300M": VisionConfig(1024, 24, 16, 4096, norm_type="layer_norm", use_qk_norm=False, use_qkv_bias=True),
    "6B": VisionConfig(3200, 45, 25, 12800),
}
LANGUAGE_MODELS = {
    "InternLM2-1.8B": _internlm2(2048, 24, 16, 8, 8192),
    "InternLM2.5-7B": _internlm2(4096, 32, 32, 8, 14336),
    "InternLM2-20B": _internlm2(6144, 48, 48, 8, 16384),
    "Qwen2-0.5B": _qwen2(896, 24, 14, 2, 4864, _QWEN2_VOCAB),
    "Qwen2.5-0.5B": _qwen2(896, 24, 14, 2, 4864),
    "Qwen2.5-1.5B": _qwen2(1536, 28, 12, 2, 8960),
    "Qwen2.5-3B": _qwen2(2048, 36, 16, 2, 11008),
    "Qwen2.5-7B": _qwen2(3584, 28, 28, 4, 18944),
    "Qwen2.5-14B": _qwen2(5120, 48, 40, 8, 13824),
    "Qwen2.5-32B": _qwen2(5120, 64, 40, 8, 27648),
    "Qwen2.5-72B": _qwen2(8192, 80, 64, 8, 29568),
    "Qwen3-0.6B": _qwen3(1024, 28, 16, 3072),
    "Qwen3-1.7B": _qwen3(2048, 28, 16, 6144),
    "Qwen3-4B": _qwen3(2560, 36, 32, 9728),
    "Qwen3-8B": _qwen3(4096, 36, 32, 12288),
    "Qwen3-14B": _qwen3(5120, 40, 40, 17408),
    "Qwen3-32B": _qwen3(5120, 64, 64, 25600),
    "Phi-3-mini": LanguageModel("Phi3ForCausalLM"),
    "Yi-34B": LanguageModel("LlamaForCausalLM"),
    "Llama-3-70B": LanguageModel("LlamaForCausalLM"),
    "InternLM3-8B": LanguageModel("InternLM3ForCausalLM"),
    "Qwen3-30B-A3B": LanguageModel("Qwen3MoeForCausalLM"),
    "Qwen3-235B-A22B": LanguageModel("Qwen3MoeForCausalLM"),
    "gpt-oss-20b": LanguageModel("GptOssForCausalLM"),
}
# The `model_type` that stands for a class where config.json names none.
MODEL_TYPES = {
    "phi3": "Phi3ForCausalLM",
    "llama": "LlamaForCausalLM",
    "internlm3": "InternLM3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
}

_V1_5, _V2, _HERMES, _V2_5 = "internvl-internlm2", "internvl2-internlm2", "internvl2-hermes-2", "internvl2_5"
# Its config.json is read and planned, and two layers of its shapes run with random weights; the ids of its prompt are
# checked with its own vocabulary.
_IDS = "shapes, ids"
# Beside that the prompt and answer of a published run to the id, and speed in full size on a GPU, with random weights.
_ANSWER = "shapes, ids, answer"
RELEASES = (
    Release("InternVL-Chat-V1-5", "1.5", "26B", "InternLM2-20B", "6B", "internlm2-chat", _V1_5, _ANSWER),
    Release("Mini-InternVL-Chat-2B-V1-5", "1.5", "2B", "InternLM2-1.8B", "300M", "internlm2-chat", _V1_5, _IDS),
    Release("Mini-InternVL-Chat-4B-V1-5", "1.5", "4B", "Phi-3-mini", "300M", "phi3-chat"),
    Release("InternVL2-1B", "2", "1B", "Qwen2-0.5B", "300M", "Hermes-2", _HERMES, _IDS),
    Release("InternVL2-2B", "2", "2B", "InternLM2-1.8B", "300M", "internlm2-chat", _V2, _IDS),
    Release("InternVL2-4B", "2", "4B", "Phi-3-mini", "300M", "phi3-chat"),
    Release("InternVL2-8B", "2", "8B", "InternLM2.5-7B", "300M", "internlm2-chat", _V2, _IDS),
    Release("InternVL2-26B", "2", "26B", "InternLM2-20B", "6B", "internlm2-chat", _V2, _IDS),
    Release("InternVL2-40B", "2", "40B", "Yi-34B", "6B", "Hermes-2"),
    Release("InternVL2-Llama3-76B", "2", "76B", "Llama-3-70B", "6B", "internlm2-chat"),
    Release("InternVL2_5-1B", "2.5", "1B", "Qwen2.5-0.5B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL2_5-2B", "2.5", "2B", "InternLM2-1.8B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL2_5-4B", "2.5", "4B", "Qwen2.5-3B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL2_5-8B", "2.5", "8B", "InternLM2.5-7B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL2_5-26B", "2.5", "26B", "InternLM2-20B", "6B", "internvl2_5", _V2_5, _IDS),
    Release("InternVL2_5-38B", "2.5", "38B", "Qwen2.5-32B", "6B", "internvl2_5", _V2_5, _IDS),
    Release("InternVL2_5-78B", "2.5", "78B", "Qwen2.5-72B", "6B", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3-1B", "3", "1B", "Qwen2.5-0.5B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3-2B", "3", "2B", "Qwen2.5-1.5B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3-8B", "3", "8B", "Qwen2.5-7B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3-9B", "3", "9B", "InternLM3-8B", "300M", "internvl2_5"),
    Release("InternVL3-14B", "3", "14B", "Qwen2.5-14B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3-38B", "3", "38B", "Qwen2.5-32B", "6B", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3-78B", "3", "78B", "Qwen2.5-72B", "6B", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3_5-1B", "3.5", "1B", "Qwen3-0.6B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3_5-2B", "3.5", "2B", "Qwen3-1.7B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3_5-4B", "3.5", "4B", "Qwen3-4B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3_5-8B", "3.5", "8B", "Qwen3-8B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3_5-14B", "3.5", "14B", "Qwen3-14B", "300M", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3_5-38B", "3.5", "38B", "Qwen3-32B", "6B", "internvl2_5", _V2_5, _IDS),
    Release("InternVL3_5-30B-A3B", "3.5", "30B-A3B", "Qwen3-30B-A3B", "300M", "internvl2_5"),
    Release("InternVL3_5-241B-A28B", "3.5", "241B-A28B", "Qwen3-235B-A22B", "6B", "internvl2_5"),
    Release("InternVL3_5-GPT-OSS-20B-A4B-Preview", "3.5", "20B-A4B", "gpt-oss-20b", "300M", "internvl3_5_gpt_oss"),
)


def find_releases(architecture: str) -> tuple[Release, ...]:
    """The releases whose language model is of this class."""
    return tuple(release for release in RELEASES if release.architecture == architecture)


def find_candidates(model: ModelConfig) -> tuple[Release, ...]:
    """The releases that a checkpoint may be by its template, tower and sizes; none where it fits no release.

    Where it names no template, its vocabulary tells generations of a backbone apart.
    """
    return tuple(release for release in RELEASES if release.is_served and _is_alike(model, release))


def _is_alike(model: ModelConfig, release: Release) -> bool:
    listed = release.create_model()
    has_same_vocabulary = model.decoder.vocab_size == listed.decoder.vocab_size
    has_same_template = has_same_vocabulary if model.template is None else model.template == release.template
    return has_same_template and _list_sizes(model) == _list_sizes(listed)


def _list_sizes(model: ModelConfig) -> tuple[object, ...]:
    decoder, vision = model.decoder, model.vision
    return decoder.family, decoder.hidden_size, decoder.num_layers, vision.hidden_size, vision.num_layers
