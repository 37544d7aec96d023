"""Qwen3Config: Qwen2's fields with an explicit head size, one flag for all biases, and norms of queries and keys."""

from dataclasses import replace

from tilewise.checkpoint.hf_config.qwen2 import read_qwen
from tilewise.checkpoint.hf_config.section import Section
from tilewise.config import DecoderConfig


def read_decoder(section: Section) -> DecoderConfig:
    """Defaults are Qwen3Config's: the head size is no share of the width."""
    has_biases = section.flag("attention_bias", False)
    decoder = read_qwen(section, "qwen3", section.count("head_dim", 128), has_qk_norm=True)
    return replace(decoder, use_qkv_bias=has_biases, use_output_bias=has_biases)
