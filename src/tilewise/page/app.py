"""The chat page: an HTTP client of the API with a face.

Owns the page's layout, what it asks the API and how it tells failures; what it shows is made in `views`, and
no model is loaded here. Pictures are read where the page itself stored them, and nothing is asked of other hosts.
"""

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from typing import Any, cast

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
import gradio as gr
from gradio.i18n import I18nData
from gradio.themes import Default
from gradio.utils import get_upload_folder
from PIL import Image

from tilewise.client import APIClient, chat_body
from tilewise.demo import picture_path
from tilewise.errors import ImageError, TilewiseError
from tilewise.inputs.media.policy import ImageLimits, ImagePolicy
from tilewise.inputs.media.sources import load_image
from tilewise.page import views
from tilewise.page.chat import MAX_TEXT_CHARACTERS, Chat, Failure, PageBlocks
from tilewise.page.frame import SHARED_HOSTS, FramedApp
from tilewise.page.markup import restore
from tilewise.page.snippets import write_curl, write_pipeline, write_sdk
from tilewise.page.turns import Turn, read_turns
from tilewise.page.uploads import UploadLimits, Uploads
from tilewise.page.words import WORDS, in_both
from tilewise.types import TilingParameters

_FOLDER = Path(__file__).parent
_QUESTIONS = (
    "请描述图中内容",
    "What is in the picture?",
    "请找出紫色心形，并用框标出来。",
    "Find the yellow cross and mark it with a box.",
)
_MAX_TILES = 12
_PULSE_S = 1.0
_MAX_SESSIONS = 2048  # of which gradio keeps the chat
_DEFAULT_LIMITS = ImageLimits()
_DEFAULT_UPLOAD_LIMITS = UploadLimits()
_CODE = ("curl", "openai", "tilewise")


class Page:
    """What the page asks of one server."""

    def __init__(
        self,
        client: APIClient,
        model: str | None,
        code_url: str,
        limits: ImageLimits = _DEFAULT_LIMITS,
        load: Callable[[Path, ImagePolicy], Image.Image] = load_image,
    ) -> None:
        """`model` and `code_url` are what the code on the page names; pictures are read from gradio's folder only.

        `load` reads one, and `limits` are those of one question.
        """
        self._client = client
        self._model = model
        self._code_url = code_url
        self._policy = ImagePolicy(limits, allowed_local_media_path=get_upload_folder())
        self._load = load
        # However many visitors there are, one picture is there in full at a time.
        self._viewer = ThreadPoolExecutor(1, "tilewise-viewer")
        self._facts: dict[str, Any] | None = None

    def describe(self) -> dict[str, Any]:
        """What the server says of its model; asked again until it answered once."""
        if self._facts is None:
            self._facts = self._client.describe_models()[0]
        return self._facts

    def greet(self) -> tuple[str, Any]:
        """The head of the page, and the slider of tiles at the model's own number."""
        try:
            facts = self.describe()
        except TilewiseError:
            return views.show_head("", [in_both("is_down")]), gr.update()
        cut = facts.get("tilewise", {})
        notes = [in_both(key) for key in ("is_random", "is_demo") if cut.get(key)]
        return views.show_head(str(facts["id"]), notes[:1]), cut.get("max_dynamic_patch", _MAX_TILES)

    async def answer(
        self,
        message: Turn | str,
        history: Sequence[Turn],
        max_tokens: int = 512,
        temperature: float = 0.7,
        top_p: float = 0.8,
        top_k: int = 50,
        max_tiles: int = _MAX_TILES,
        system: str = "",
    ) -> AsyncGenerator[tuple[Any, ...], None]:
        """Answer one message. Gives the answer so far, then tiles, boxes, facts, and the code in three forms.

        Leaving the generator closes the connection, which aborts the answer in the engine.
        """
        text, look, code = "", "", ("",) * len(_CODE)
        unchanged = (cast(Any, gr).skip(),) * len(_CODE)
        try:
            facts = await asyncio.to_thread(self.describe)
            cut = facts.get("tilewise", {})
            least, most = cut.get("min_dynamic_patch", 1), cut.get("max_dynamic_patch", _MAX_TILES)
            has_overview, tile_size = cut.get("use_thumbnail", True), cut.get("tile_size", 448)
            tiling = TilingParameters(min(least, int(max_tiles)), int(max_tiles), has_overview, tile_size)
            body: dict[str, Any] = {
                "model": facts["id"],
                "messages": read_turns(history, message, system, None if max_tiles == most else int(max_tiles)),
                "max_tokens": int(max_tokens),
                "temperature": temperature,
                "top_p": top_p,
                "top_k": int(top_k),
                "skip_special_tokens": False,
            }
            tokens_per_tile = cut.get("tokens_per_tile", 256)
            loop = asyncio.get_running_loop()
            tiles, last = await loop.run_in_executor(
                self._viewer, self.show_tiles, body["messages"], tiling, tokens_per_tile
            )
            url = self._code_url
            code = (write_curl(url, body), write_sdk(url, body), write_pipeline(self._model, body))
            look = views.panel(tiles)
            yield "", look, *code
            async for text, seen in self._follow(body):
                look = views.panel(views.show_boxes(last, text) if seen else "", seen, tiles)
                # Programs get what was given last.
                yield views.without_marks(text), look, *(code if seen else unchanged)
        except TilewiseError as error:
            # NOTE: an error of gradio's own would leave the text box locked.
            kind = next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in WORDS["en"])
            yield Failure(views.without_marks(text), f"⚠️ {' '.join(in_both(kind))}\n\n{error}"), look, *code

    async def _follow(self, body: Mapping[str, Any]) -> AsyncGenerator[tuple[str, str], None]:
        """Yield the text so far; at last also what the answer took."""
        request = await asyncio.to_thread(chat_body, **body, stream=True, stream_options={"include_usage": True})
        text, end, started_at = "", None, time.monotonic()
        usage: Mapping[str, Any] = {}
        first_at: float | None = None
        async with aclosing(_pulse(self._client.stream_chat(request))) as chunks:
            async for chunk in chunks:
                usage = chunk.get("usage") or usage
                for choice in chunk.get("choices", ()):
                    end = choice.get("finish_reason") or end
                    if delta := choice["delta"].get("content"):
                        first_at = first_at or time.monotonic()
                        text += restore(delta)
                yield text, ""
        ended_at = time.monotonic()
        first_at = first_at or ended_at
        yield text, views.show_facts(first_at - started_at, ended_at - first_at, usage, is_cut_off=end == "length")

    def show_tiles(
        self, messages: Sequence[Turn], tiling: TilingParameters, tokens_per_tile: int
    ) -> tuple[str, Image.Image | None]:
        """The tiles of the conversation's pictures, and a small copy of the last one.

        Raises:
            InputError: the API would take fewer pictures, or fewer pixels.
        """
        parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
        paths = [Path(part["image_url"]["url"]) for part in parts if part["type"] == "image_url"]
        small: list[Image.Image] = []
        shown = views.show_tiles(self._load_each(paths, small), tiling, tokens_per_tile)
        return shown, (small[-1] if small else None)

    def _load_each(self, paths: Sequence[Path], small: list[Image.Image]) -> Iterator[Image.Image]:
        """Give one picture after another, each from the page's own folder or the bundled one; `small` gets the last."""
        self._policy.limits.check_request(len(paths))
        num_pixels = 0
        for path in paths:
            try:
                picture = self._load(path, ImagePolicy() if path == picture_path() else self._policy)
            except ImageError:
                if path.exists():
                    raise
                raise ImageError(" ".join(in_both("picture_gone"))) from None
            num_pixels += picture.width * picture.height
            self._policy.limits.check_request(len(paths), num_pixels)
            yield picture
            picture.thumbnail((views.BOXED_SIDE, views.BOXED_SIDE))
            small[:] = [picture]


async def _pulse(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks, and an empty one whenever none came for a while: gradio sees who has left at a yield only."""
    waiting: set[asyncio.Future[Any]] = set()
    try:
        while True:
            waiting = waiting or {asyncio.ensure_future(cast(Any, anext(chunks, None)))}
            done, waiting = await asyncio.wait(waiting, timeout=_PULSE_S)
            chunk: dict[str, Any] | None = next((asked.result() for asked in done), cast(dict[str, Any], {}))
            if chunk is None:
                return
            yield chunk
    finally:
        for asked in waiting:
            asked.cancel()
            await asyncio.wait((asked,))
        await chunks.aclose()


def create_page(client: APIClient, *, model: str | None = None, code_url: str | None = None) -> gr.Blocks:
    """Lay the page out over `client`; `launch_page` opens it.

    `model` is what the page's Python code loads (None: the embedded model), `code_url` the server it names.
    """
    page = Page(client, model, code_url or client.server_url)
    with PageBlocks(title="Tilewise", analytics_enabled=False, fill_height=True) as blocks:
        head = gr.HTML()
        with gr.Row(equal_height=False):
            left, right = gr.Column(scale=7, min_width=320), gr.Column(scale=4, min_width=320)
        with right:
            with gr.Tab(_word("look")):
                look = gr.HTML()
            with gr.Tab(_word("settings")):
                settings: list[Any] = [
                    gr.Slider(1, 4096, 512, step=1, label=_word("max_tokens")),
                    gr.Slider(0, 2, 0.7, step=0.05, label=_word("temperature")),
                    gr.Slider(0.05, 1, 0.8, step=0.05, label="top_p"),
                    gr.Slider(0, 200, 50, step=1, label="top_k"),
                    gr.Slider(1, 40, _MAX_TILES, step=1, label=_word("max_tiles")),
                    gr.Textbox("", label=_word("system"), placeholder=_word("system_hint"), lines=3),
                ]
            with gr.Tab(_word("code")):
                code: list[Any] = []
                for name in _CODE:
                    with gr.Tab(name):
                        code.append(gr.Code(show_label=False, language="shell" if name == "curl" else "python"))
        with left:
            chat = _create_chat(page, settings, [look, *code])
        # The history is found again after a restart only under the same key.
        chat.saved_conversations.storage_key = chat.saved_conversations.secret = "tilewise-history"
        chat.new_chat_button.value, chat.new_chat_button.variant = _word("new"), "secondary"
        chat.new_chat_button.icon = None
        cast(Any, chat.new_chat_button.parent).elem_classes = ["tw-history"]
        blocks.load(page.greet, None, [head, settings[4]], queue=False)
        for function in blocks.fns.values():  # the chat alone is for programs; the rest is how the page works
            if function.api_name != "chat":
                function.api_visibility = "private"
    return blocks


def _word(key: str) -> Any:
    """A text that the browser shows in its own language."""
    return I18nData(f"tilewise_{key}")


def _create_chat(page: Page, settings: list[Any], shown: list[Any]) -> Chat:
    picture = str(picture_path())
    chatbot = gr.Chatbot(
        show_label=False,
        scale=1,
        height="calc(100vh - 18rem)",
        min_height=320,
        buttons=["copy"],
        group_consecutive_messages=False,
    )
    textbox = gr.MultimodalTextbox(
        sources=["upload"],
        file_types=["image"],
        file_count="multiple",
        placeholder=_word("message"),
        show_label=False,
        max_plain_text_length=MAX_TEXT_CHARACTERS,
        stop_btn=True,
    )
    return Chat(
        page.answer,
        multimodal=True,
        chatbot=chatbot,
        textbox=textbox,
        editable=True,
        save_history=True,
        additional_inputs=settings,
        additional_outputs=shown,
        examples=[[{"text": text, "files": [picture]}, *[None] * len(settings)] for text in _QUESTIONS],
        api_name="chat",
        concurrency_limit=None,  # the API's own queue says when it is full
        fill_height=True,
        analytics_enabled=False,
    )


def launch_page(
    blocks: gr.Blocks,
    server_name: str,
    server_port: int,
    *,
    is_shared: bool = False,
    allowed_hosts: Sequence[str] = (),
    upload_limits: UploadLimits = _DEFAULT_UPLOAD_LIMITS,
) -> str:
    """Open a page of `create_page` and return its address; `blocks.close()` ends it and takes all uploads away.

    Over loopback it answers this machine's own names alone, and `allowed_hosts`, which a proxy may pass on.
    """
    uploads = Uploads(Path(get_upload_folder()), upload_limits)
    theme = Default(primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    words = {language: {f"tilewise_{key}": text for key, text in WORDS[language].items()} for language in WORDS}
    _, address, _ = blocks.launch(
        server_name=server_name,
        server_port=server_port,
        share=is_shared,
        prevent_thread_lock=True,
        quiet=not is_shared,
        allowed_paths=[str(picture_path())],
        max_file_size=upload_limits.image.max_bytes,
        footer_links=[],  # its settings offer to record the screen, on routes that are closed
        state_session_capacity=_MAX_SESSIONS,
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        theme=theme,
        css_paths=_FOLDER / "page.css",
        i18n=gr.I18n(**words),
        _app=FramedApp([*allowed_hosts, *(SHARED_HOSTS if is_shared else ())], uploads, WORDS),
    )
    return address
