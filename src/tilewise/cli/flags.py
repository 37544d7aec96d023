"""Command-line flags from the fields of a frozen configuration: one name, type and default, in one place.

A flag that is not given does not appear in the result, so the configuration's own default holds.
"""

import argparse
import types
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

_METAVARS = {int: "N", float: "X", str: "TEXT"}
ENGINE_HELP = {
    "tp": "GPUs to spread the model over; only 1 in this version",
    "session_len": "most tokens of prompt and answer together; default: what the model was trained for",
    "max_batch_size": "most sequences that run at once",
    "cache_max_entry_count": "share of the memory left after loading that KV blocks may take",
    "cache_block_seq_len": "tokens of one KV block: 16, 32, 64 or 128",
    "quant_policy": "bits of the KV cache, 0 for as they are; only 0 in this version",
    "rope_scaling_factor": "extend the rotary base, for a session longer than the model was trained for",
    "max_prefill_token_num": "most prompt tokens in one step",
    "model_format": "weights of the checkpoint; only hf in this version",
    "dtype": "auto, float32, bfloat16 or float16; auto is float32 on the CPU, the checkpoint's own on a GPU",
    "enable_prefix_caching": "reuse the KV of prompts that begin alike",
    "download_dir": "folder for downloads, in place of the hub's own cache",
    "revision": "branch, tag or commit of a hub id",
    "device": "auto, cpu, cuda or cuda:N",
    "load_format": "dummy makes random weights from config.json alone, for measuring",
    "kv_cache_bytes": "memory for KV blocks, in place of the share; 512 MiB on the CPU",
    "image_cache_bytes": "memory for embeddings of pictures seen before",
    "max_prefill_tiles": "most picture tiles that the tower sees in one step",
    "max_busy_token_num": "most work of a step that streamed answers wait for, in prompt tokens (GPU; 800 for a 26B)",
    "use_cuda_graphs": "capture steps of many sizes at the start: much faster, and seconds until ready (GPU)",
}
GENERATION_HELP = {
    "n": "answers to one prompt",
    "max_new_tokens": "most tokens of an answer",
    "do_sample": "sample; without it the likeliest token is taken",
    "top_p": "sample from the likeliest tokens that hold this share of the probability",
    "top_k": "sample from this many of the likeliest tokens; 0 for all",
    "min_p": "drop tokens below this share of the likeliest one's probability",
    "temperature": "above 1 flattens, below 1 sharpens",
    "repetition_penalty": "above 1 discourages tokens that were there before",
    "presence_penalty": "taken once from every token of the answer so far",
    "frequency_penalty": "taken as often as a token is in the answer so far",
    "ignore_eos": "go on after the model's own end",
    "random_seed": "makes a sampled answer repeat",
    "stop_words": "end the answer before this text; may be repeated",
    "bad_words": "never say this word of one token; may be repeated",
    "stop_token_ids": "end the answer at this id; may be repeated",
    "bad_token_ids": "never give this id; may be repeated",
    "min_new_tokens": "fewest tokens of an answer",
    "skip_special_tokens": "leave tokens such as <box> out of the text",
    "response_format": 'JSON text of the answer\'s form, as {"type": "json_object"}',
    "logprobs": "give this many of the likeliest tokens of every step (with --json)",
}
PICTURE_HELP = {
    "max_dynamic_patch": "most tiles of a picture, the thumbnail not counted; default: the model's",
    "min_dynamic_patch": "fewest tiles of a picture; default: the model's",
    "allowed_media_hosts": "fetch pictures from this host though it is not on the public internet; may be repeated",
}
SERVER_HELP = {
    "server_name": "address to listen at; beyond loopback, set keys",
    "server_port": "port to listen at; 0 for any",
    "server_fd": "listen at this socket, which whoever starts the server hands over, in place of name and port",
    "model_name": "what clients call the model; default: its hub id or folder",
    "api_keys": "key that clients must send; may be repeated. Others may see it in the process list: better the "
    "variable TILEWISE_API_KEYS (between commas) or a file",
    "api_keys_file": "file with a key a line",
    "allow_origins": "origin whose pages may call from a browser, as https://page.example; may be repeated",
    "max_queued": "most answers that wait beside those that run; more get status 429",
    "max_connections": "most open connections; then the longest idle one gives way, then one whose body comes too "
    "slowly, and where all are busy, only /health and /ready are answered",
    "body_memory_bytes": "memory for the bodies of all requests under way, until their pictures are decoded; more get "
    "status 503",
    "min_body_bytes_per_s": "slowest that a body may arrive, averaged over 20 s; slower ones get status 408",
    "allowed_local_media_path": "folder whose pictures clients may name by path; default: none",
    "ssl_certfile": "PEM file with the certificate, for https",
    "ssl_keyfile": "PEM file with its key",
    "log_format": "text or json",
}


def add_flags(parser: argparse.ArgumentParser, title: str, config: type, help_texts: Mapping[str, str]) -> None:
    """Add a flag for every field of `config` that `help_texts` describes, in a group of their own."""
    group = parser.add_argument_group(title)
    hints = get_type_hints(config)
    for field in fields(config):
        if field.name not in help_texts:
            continue
        options = _options(hints[field.name])
        default = field.default
        shown = "" if default is None or default == () or isinstance(default, bool) else f" (default: {default})"
        text = (help_texts[field.name] + shown).replace("%", "%%")
        flag = "--" + field.name.replace("_", "-")
        group.add_argument(flag, dest=field.name, default=argparse.SUPPRESS, help=text, **options)


def given_flags(args: argparse.Namespace, help_texts: Mapping[str, str]) -> dict[str, Any]:
    """The fields that were given on the command line."""
    return {name: value for name, value in vars(args).items() if name in help_texts}


def to_argv(given: Mapping[str, Any]) -> list[str]:
    """The command line that gives these fields again."""
    flags: list[str] = []
    for name, value in given.items():
        dashed = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{dashed}")
        else:
            items = cast(list[Any], value) if isinstance(value, list) else [value]
            flags += [f"--{dashed}={item}" for item in items]
    return flags


def _options(hint: Any) -> dict[str, Any]:
    """What argparse needs for a field's type: T, T | None, a tuple of T, a Literal or a bool."""
    if get_origin(hint) is types.UnionType:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    if get_origin(hint) is Literal:
        return {"choices": get_args(hint)}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        return {"action": "append", "type": kind, "metavar": _METAVARS[kind]}
    return {"type": hint, "metavar": _METAVARS[hint]}
