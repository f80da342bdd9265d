"""`lexloom app`: the web page on which a store's models can be tried.

Everything on it comes from this process: no other host is asked for a font, a script or a count of visitors,
and the browser is told to refuse it (a content security policy).
"""

import os

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
if __name__ == "__main__":  # not where it is imported: other code of that process may need the hub
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models lie in the store

import argparse
import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr
import uvicorn
from fastapi import FastAPI
from rich.text import Text
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lexloom.deployments.server.sockets import listen
from lexloom.deployments.web import handlers as answers
from lexloom.deployments.web import theme as look
from lexloom.deployments.web.model_catalog import Shelf
from lexloom.deployments.web.queue import Readers, Turns, WatchReaders, in_turn
from lexloom.flows.local_server.same_origin import Address, SameOrigin
from lexloom.tasks.display.charts import Html
from lexloom.tasks.display.console import stderr
from lexloom.tasks.display.page import element
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.lookup import SENTIMENT, TRANSFORMER, WINDOW_LM, WORD2VEC

HOST, PORT = "127.0.0.1", 7860
AT_WORK = 1_000  # requests of all kinds that Gradio has in hand, most of which wait: threads are far fewer
SHUTDOWN_SECONDS = 1
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:;"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'"
)
PICK = """
let inside = false;
element.addEventListener('click', event => {
  const chosen = event.target.closest('[data-pick]');
  if (!chosen) return;
  inside = element.contains(document.activeElement);
  trigger('pick', {text: chosen.dataset.pick});
});
watch('value', () => {
  if (inside && !element.contains(document.activeElement)) element.querySelector('[data-pick]')?.focus();
  inside = false;
});
"""


ByTurns = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Takes a function of `answers`; returns it for Gradio, on the page's shelf and by turns."""


@dataclass(frozen=True)
class Kind:
    """A kind of model: the tab that it is tried on, the stages that train it, and how to get one."""

    tab: str
    stages: tuple[str, ...]
    purpose: str
    missing: str
    command: str


KINDS = {
    "sentiment": Kind(
        "Sentiment",
        (SENTIMENT,),
        "Which label a text has, and which of its words say so.",
        "There is no sentiment classifier in this store yet.",
        "lexloom sentiment",
    ),
    "write": Kind(
        "Write",
        (TRANSFORMER, WINDOW_LM),
        "A language model goes on from what you begin.",
        "There is no language model in this store yet.",
        "lexloom transformer-lm",
    ),
    "next-word": Kind(
        "Next word",
        (WINDOW_LM,),
        "What a window model expects after the last few tokens.",
        "There is no window language model in this store yet.",
        "lexloom window-lm",
    ),
    "words": Kind(
        "Words",
        (WORD2VEC,),
        "Words whose vectors point the same way, and analogies between them.",
        "There are no word vectors in this store yet.",
        "lexloom word2vec",
    ),
}


def build(shelf: Shelf, readers: Readers) -> gr.Blocks:
    """The page."""

    def by_turns(answer: Callable[..., Any]) -> Callable[..., Any]:
        return in_turn(partial(answer, shelf), readers, Turns(), answers.problem)

    with gr.Blocks(title="Lexloom", analytics_enabled=False) as blocks:
        gr.HTML(header(shelf), apply_default_css=False)
        with gr.Tabs():
            with tab(blocks, shelf, "sentiment") as (models, _):
                sentiment_tab(by_turns, models)
            with tab(blocks, shelf, "write") as (models, _):
                write_tab(by_turns, models)
            with tab(blocks, shelf, "next-word") as (models, itself):
                next_word_tab(by_turns, models, itself)
            with tab(blocks, shelf, "words") as (models, _):
                words_tab(by_turns, models)
    blocks.max_threads = AT_WORK
    return blocks.queue(max_size=AT_WORK)


def header(shelf: Shelf) -> Html:
    brand = element("p", "Lexloom", "brand")
    heading = element("h1", "Try the models")
    return answers.framed(
        Html(f"<header>{brand}{heading}{element('p', f'Store {shelf.store.root}', 'note')}</header>")
    )


@contextlib.contextmanager
def tab(blocks: gr.Blocks, shelf: Shelf, name: str) -> Iterator[tuple[gr.Dropdown, gr.Tab]]:
    """A tab with the list of its models, which is read anew when the page or the tab is opened."""
    kind = KINDS[name]
    with gr.Tab(kind.tab, id=name, elem_id=name) as itself:
        with gr.Row(elem_classes="purpose"):
            gr.HTML(answers.framed(element("p", kind.purpose, "note")), apply_default_css=False)
            refresh = gr.Button("Refresh", size="sm", scale=0, min_width=80)
        first, missing, shown = offered(shelf, kind, None)
        models = gr.Dropdown(
            **first,
            label="Model",
            container=False,
            filterable=False,
            interactive=True,
            elem_classes="choose",
        )
        absent = gr.HTML(**missing, apply_default_css=False)
        with gr.Column(**shown) as present:
            yield models, itself

        def again(chosen: str | None) -> tuple[Any, Any, Any]:
            listed, said, usable = offered(shelf, kind, chosen)
            return gr.update(**listed), gr.update(**said), gr.update(**usable)

        gr.on(
            [blocks.load, itself.select, refresh.click],
            again,
            models,
            [models, absent, present],
            show_progress="hidden",
            trigger_mode="always_last",  # by default a click is ignored while the list is still being read
            api_name=f"{name.replace('-', '_')}_models",
        )


def offered(
    shelf: Shelf, kind: Kind, chosen: str | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What the list of models, the sentence in place of one, and the rest of the tab show.

    The model that was chosen stays chosen while it is there; else it is the newest.
    """
    entries = shelf.entries(*kind.stages)
    names = [entry.name for entry in entries]
    there = bool(entries)
    value = chosen if chosen in names else next(iter(names), None)
    choices = [(entry.label, entry.name) for entry in entries]
    return (
        {"choices": choices, "value": value, "visible": there},
        {"value": "" if there else how_to_train(kind), "visible": not there},
        {"visible": there},
    )


def how_to_train(kind: Kind) -> Html:
    said = element("p", kind.missing)
    command = Html(f"<p>Train one, then press Refresh: {element('code', kind.command)}</p>")
    return answers.framed(Html(f'<div class="card missing">{said}{command}</div>'))


# the tabs


def sentiment_tab(by_turns: ByTurns, models: gr.Dropdown) -> None:
    text = gr.Textbox(
        label="Text",
        placeholder="A film that I would gladly see again",
        lines=1,
        max_lines=12,
        elem_classes="tall",
    )
    with gr.Row(elem_classes="ask"):
        ask = gr.Button("Classify", variant="primary")
    answer = gr.HTML(apply_default_css=False, elem_classes="answer")
    gr.on(
        [ask.click, text.submit],
        by_turns(answers.sentiment),
        [models, text],
        answer,
        show_progress="minimal",
        concurrency_limit=None,
        api_name="sentiment",
    )


def write_tab(by_turns: ByTurns, models: gr.Dropdown) -> None:
    prompt = gr.Textbox(
        label="Beginning",
        placeholder="The people (left empty, a new text begins)",
        lines=1,
        max_lines=12,
        elem_classes="tall",
    )
    with gr.Accordion("How it draws", open=False), gr.Group(elem_classes="knobs"):
        knobs = [
            gr.Slider(1, answers.MOST_TOKENS, 200, step=1, label="Tokens at most"),
            gr.Slider(0, 2, 0.8, step=0.05, label="Temperature (0: the likeliest always)"),
            gr.Slider(0, 500, 0, step=1, label="Top-k (0: all)"),
            gr.Slider(0.05, 1, 0.95, step=0.01, label="Top-p (1: all)"),
            gr.Slider(0, 1, 0, step=0.01, label="Min-p (0: all)"),
            gr.Slider(0.5, 2, 1, step=0.05, label="Repetition penalty (1: none)"),
            gr.Number(0, precision=0, minimum=0, label="Seed (the same one gives the same text)"),
        ]
    with gr.Row(elem_classes="ask"):
        ask = gr.Button("Write", variant="primary")
        stop = gr.Button("Stop")
    answer = gr.HTML(apply_default_css=False, elem_classes="answer")
    writing = gr.on(
        [ask.click, prompt.submit],
        by_turns(answers.write),
        [models, prompt, *knobs],
        answer,
        show_progress="hidden",
        concurrency_limit=None,
        api_name="write",
    )
    stop.click(answers.stopped, answer, answer, cancels=writing, show_progress="hidden", api_name="stop")


def next_word_tab(by_turns: ByTurns, models: gr.Dropdown, itself: gr.Tab) -> None:
    context = gr.Textbox(
        label="Text so far", placeholder="The people of the", lines=1, max_lines=12, elem_classes="tall"
    )
    answer = gr.HTML(apply_default_css=False, elem_classes="answer", js_on_load=PICK)
    gr.on(
        [itself.select, context.change, context.submit, models.change],
        by_turns(answers.next_word),
        [models, context],
        answer,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
        api_name="next_word",
    )

    def append(so_far: str, event: gr.EventData) -> str:
        return so_far + event.text

    answer.pick(append, context, context, show_progress="hidden", api_visibility="private")


def words_tab(by_turns: ByTurns, models: gr.Dropdown) -> None:
    with gr.Row(elem_classes="inline"):
        word = gr.Textbox(label="Word", placeholder="peace", lines=1, max_lines=1)
        look_up = gr.Button("Neighbours", variant="primary")
    near = gr.HTML(apply_default_css=False, elem_classes="answer", js_on_load=PICK)
    asked = {
        "fn": by_turns(answers.neighbours),
        "inputs": [models, word],
        "outputs": near,
        "show_progress": "hidden",
        "concurrency_limit": None,
    }
    gr.on([look_up.click, word.submit], **asked, api_name="neighbours")

    def take(event: gr.EventData) -> str:
        return event.text

    near.pick(take, None, word, show_progress="hidden", api_visibility="private").then(
        **asked, api_visibility="private"
    )
    with gr.Row(elem_classes=["inline", "analogy"]):
        three = [
            gr.Textbox(label=label, placeholder=example, lines=1, max_lines=1, min_width=90)
            for label, example in (("A", "france"), ("is to B", "paris"), ("as C", "spain"))
        ]
        solve = gr.Button("is to what?")
    found = gr.HTML(apply_default_css=False, elem_classes="answer")
    gr.on(
        [solve.click, *(box.submit for box in three)],
        by_turns(answers.analogy),
        [models, *three],
        found,
        show_progress="hidden",
        concurrency_limit=None,
        api_name="analogy",
    )


# serving


class AskNobodyElse:
    """Tells the browser, with every answer, to load nothing from other hosts."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self._app(scope, receive, send_with_policy)


def web_app(store: Store, host: str = HOST, allow_hosts: Sequence[str] = ()) -> FastAPI:
    """The page and what it calls, to be served at `host`, and under the names of `allow_hosts`."""
    app = FastAPI(openapi_url=None)  # whose documentation pages would load scripts from elsewhere
    readers = Readers()
    app.add_middleware(WatchReaders, readers=readers)
    app.add_middleware(AskNobodyElse)
    app.add_middleware(SameOrigin, host=host, allow_hosts=allow_hosts)  # added last, called first
    return gr.mount_gradio_app(
        app,
        build(Shelf(store), readers),
        path="/",
        theme=look.theme(),
        head=look.HEAD,
        footer_links=[],
        run_history=False,
        show_error=False,
        ssr_mode=False,
        pwa=False,
    )


def main(argv: list[str] | None = None) -> int:
    """Serves the page until Ctrl-C; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lexloom app", description="A page to try the models of a store.")
    parser.add_argument("--host", default=HOST, help=f"the address to serve at (default: {HOST})")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0 finds a free one")
    parser.add_argument("--store", metavar="FOLDER", help="the store (default: $LEXLOOM_STORE or artifacts/)")
    parser.add_argument(
        "--allow-host", action="append", default=[], help="additional host name to accept; repeatable"
    )
    options = parser.parse_args(argv)
    try:
        for name in options.allow_host:
            Address.parse(name)
        listener = listen(options.host, options.port)
    except (OSError, ValueError) as error:
        stderr.print(Text("error: ", style="bold red") + Text(str(error)))
        return 1
    store = Store(options.store)
    warnings.simplefilter("ignore")
    server = uvicorn.Server(
        uvicorn.Config(
            web_app(store, options.host, options.allow_host),
            log_level="warning",
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            server_header=False,
        )
    )
    host, port = listener.getsockname()[:2]
    print(f"the models of {store.root} at http://{host}:{port} (Ctrl-C ends it)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
