"""Private parts of others' packages that we use: each is named here, and its package has an upper bound for it.

A release that renames one fails here, by name, before a page or a connection fails in somebody's hands.
"""

import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"


@pytest.mark.parametrize("package", ["uvicorn", "gradio"])
def test_a_package_whose_private_parts_we_use_has_an_upper_bound(package: str) -> None:
    extras = tomllib.loads(PROJECT.read_text("utf-8"))["project"]["optional-dependencies"]
    wanted = [entry for entries in extras.values() for entry in entries if re.match(rf"{package}\b", entry)]
    assert wanted
    assert all("<" in entry for entry in wanted)


def test_uvicorns_h11_protocol_has_the_hooks_that_bound_a_connection() -> None:
    from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

    own = {
        *("connection_made", "connection_lost", "data_received"),
        *("eof_received", "handle_events", "on_response_complete", "pause_writing", "resume_writing"),
        "send_400_response",
    }
    assert own <= vars(H11Protocol).keys()
    # Set in the constructor, or with the first byte.
    source = inspect.getsource(H11Protocol)
    assert all(
        f"self.{name}" in source for name in ("conn", "cycle", "flow", "loop", "timeout_keep_alive", "transport")
    )
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    assert all(f"self.{name}" in cycle for name in ("scope", "message_event", "more_body"))
    assert all(f"self.{name}" in cycle for name in ("disconnected", "response_started", "response_complete"))


def test_uvicorns_server_leaves_signals_to_a_method_that_can_be_replaced() -> None:
    import uvicorn

    assert "handle_exit" in vars(uvicorn.Server)
    assert all(f"self.{name}" in inspect.getsource(uvicorn.Server) for name in ("should_exit", "force_exit"))


def test_gradios_chat_interface_has_the_parts_that_the_page_changes() -> None:
    gr: Any = pytest.importorskip("gradio", reason="gradio (the extra `ui`) is not installed")
    from gradio.blocks import BlockFunction
    from gradio.processing_utils import async_move_files_to_cache
    from gradio.routes import App

    assert {"_message_as_message_dict", "_edit_message", "_generate_chat_title"} <= vars(gr.ChatInterface).keys()
    assert [*inspect.signature(gr.Blocks.preprocess_data).parameters] == [
        *("self", "block_fn", "inputs", "state", "explicit_call")
    ]
    assert [*inspect.signature(gr.Blocks.postprocess_data).parameters] == ["self", "block_fn", "predictions", "state"]
    # Every file that a value names goes through it, or is one already.
    stored = inspect.getsource(async_move_files_to_cache)
    assert "block.async_move_resource_to_block_cache(" in stored
    source = inspect.getsource(gr.ChatInterface)
    assert all(f"self.{name}" in source for name in ("saved_conversations", "new_chat_button"))
    assert {"storage_key", "secret"} <= inspect.signature(gr.BrowserState).parameters.keys()
    assert hasattr(gr.Chatbot, "async_move_resource_to_block_cache")
    assert "_app" in inspect.signature(gr.Blocks.launch).parameters
    assert "build_middleware_stack" in dir(App)
    assert "api_visibility" in inspect.signature(BlockFunction).parameters
