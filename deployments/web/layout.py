"""The layout of the page: one tab for each task, with a list of the models that can do it."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from lexloom.deployments.web import handlers
from lexloom.deployments.web.model_catalog import ModelCatalog
from lexloom.deployments.web.queue import Queue, Sessions, in_turn
from lexloom.models.registry import Capability

MAX_REQUESTS = 1_000  # in progress or waiting, of all kinds: threads are far fewer
# Selecting an element with `data-pick` triggers the event `pick`; the keyboard focus stays in the list.
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

Bind = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Takes a handler; returns it for Gradio, bound to the page's catalog and with a queue of its own."""


@dataclass(frozen=True)
class Tab:
    """A tab: the models that it lists, and what it says if there are none."""

    title: str
    capability: Capability
    purpose: str
    missing: str
    command: str


TABS = {
    "classify": Tab(
        "Classify",
        "classify",
        "Classify a text, and show how much each word contributes.",
        "This store has no classifier yet.",
        "lexloom sentiment",
    ),
    "write": Tab(
        "Write",  # short, so that all tabs fit on a phone
        "generate",
        "Generate text with a language model.",
        "This store has no language model yet.",
        "lexloom transformer-lm",
    ),
    "next-token": Tab(
        "Next token",
        "generate",
        "Show the most likely next tokens of a language model.",
        "This store has no language model yet.",
        "lexloom window-lm",
    ),
    "words": Tab(
        "Words",
        "neighbours",
        "Find similar words, and solve analogies.",
        "This store has no word vectors yet.",
        "lexloom word2vec",
    ),
}


def build(catalog: ModelCatalog, sessions: Sessions) -> gr.Blocks:
    """Return the page."""

    def bind(handler: Callable[..., Any]) -> Callable[..., Any]:
        return in_turn(partial(handler, catalog), sessions, Queue(), handlers.error_message)

    with gr.Blocks(title="Lexloom", analytics_enabled=False) as blocks:
        gr.HTML(handlers.results.header(catalog.store.root), apply_default_css=False)
        with gr.Tabs():
            with model_tab(blocks, catalog, "classify") as (models, _):
                classify_tab(bind, models)
            with model_tab(blocks, catalog, "write") as (models, _):
                write_tab(bind, models)
            with model_tab(blocks, catalog, "next-token") as (models, tab):
                next_token_tab(bind, models, tab)
            with model_tab(blocks, catalog, "words") as (models, _):
                words_tab(bind, models)
    blocks.max_threads = MAX_REQUESTS
    return blocks.queue(max_size=MAX_REQUESTS)


@contextlib.contextmanager
def model_tab(blocks: gr.Blocks, catalog: ModelCatalog, name: str) -> Iterator[tuple[gr.Dropdown, gr.Tab]]:
    """Open a tab with its list of models, which is refreshed when the page or the tab is opened."""
    tab = TABS[name]
    with gr.Tab(tab.title, id=name, elem_id=name) as opened:
        with gr.Row(elem_classes="purpose"):
            gr.HTML(handlers.results.purpose(tab.purpose), apply_default_css=False)
            refresh = gr.Button("Refresh", size="sm", scale=0, min_width=80)
        choices, hint, content = list_models(catalog, tab, None)
        models = gr.Dropdown(
            **choices,
            label="Model",
            container=False,
            filterable=False,
            interactive=True,
            elem_classes="choose",
        )
        missing = gr.HTML(**hint, apply_default_css=False)
        with gr.Column(**content) as column:
            yield models, opened

        def update(selected: str | None) -> tuple[Any, Any, Any]:
            choices, hint, content = list_models(catalog, tab, selected)
            return gr.update(**choices), gr.update(**hint), gr.update(**content)

        gr.on(
            [blocks.load, opened.select, refresh.click],
            update,
            models,
            [models, missing, column],
            show_progress="hidden",
            trigger_mode="always_last",  # by default a click is ignored while the list is still being read
            api_name=f"{name.replace('-', '_')}_models",
        )


def list_models(
    catalog: ModelCatalog, tab: Tab, selected: str | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the properties of the list of models, of the hint that replaces it, and of the tab's content.

    The selected model stays selected while it exists; otherwise the newest is selected.
    """
    entries = catalog.entries(tab.capability)
    names = [entry.name for entry in entries]
    found = bool(entries)
    value = selected if selected in names else next(iter(names), None)
    return (
        {"choices": [(entry.label, entry.name) for entry in entries], "value": value, "visible": found},
        {"value": "" if found else handlers.results.training_hint(tab), "visible": not found},
        {"visible": found},
    )


def classify_tab(bind: Bind, models: gr.Dropdown) -> None:
    text = gr.Textbox(
        label="Text",
        placeholder="A film that I would gladly see again",
        lines=1,
        max_lines=12,
        elem_classes="tall",
    )
    with gr.Row(elem_classes="ask"):
        run = gr.Button("Classify", variant="primary")
    result = gr.HTML(apply_default_css=False, elem_classes="answer")
    gr.on(
        [run.click, text.submit],
        bind(handlers.classify),
        [models, text],
        result,
        show_progress="minimal",
        concurrency_limit=None,
        api_name="classify",
    )


def write_tab(bind: Bind, models: gr.Dropdown) -> None:
    prompt = gr.Textbox(
        label="Prompt",
        placeholder="The people (leave empty to begin a new text)",
        lines=1,
        max_lines=12,
        elem_classes="tall",
    )
    with gr.Accordion("Sampling options", open=False), gr.Group(elem_classes="knobs"):
        options = [
            gr.Slider(1, handlers.MAX_TOKENS, 200, step=1, label="Maximum tokens"),
            gr.Slider(0, 2, 0.8, step=0.05, label="Temperature (0: greedy)"),
            gr.Slider(0, 500, 0, step=1, label="Top-k (0: off)"),
            gr.Slider(0.05, 1, 0.95, step=0.01, label="Top-p (1: off)"),
            gr.Slider(0, 1, 0, step=0.01, label="Min-p (0: off)"),
            gr.Slider(0.5, 2, 1, step=0.05, label="Repetition penalty (1: off)"),
            gr.Number(0, precision=0, minimum=0, label="Seed"),
            gr.Checkbox(False, label=handlers.STOP_AT_END),
        ]
    with gr.Row(elem_classes="ask"):
        run = gr.Button("Generate", variant="primary")
        stop = gr.Button("Stop")
    result = gr.HTML(apply_default_css=False, elem_classes="answer")
    writing = gr.on(
        [run.click, prompt.submit],
        bind(handlers.write),
        [models, prompt, *options],
        result,
        show_progress="hidden",
        concurrency_limit=None,
        api_name="write",
    )
    stop.click(handlers.stopped, result, result, cancels=writing, show_progress="hidden", api_name="stop")


def next_token_tab(bind: Bind, models: gr.Dropdown, tab: gr.Tab) -> None:
    context = gr.Textbox(
        label="Context", placeholder="The people of the", lines=1, max_lines=12, elem_classes="tall"
    )
    result = gr.HTML(apply_default_css=False, elem_classes="answer", js_on_load=PICK)
    gr.on(
        [tab.select, context.change, context.submit, models.change],
        bind(handlers.next_token),
        [models, context],
        result,
        show_progress="hidden",
        trigger_mode="always_last",
        concurrency_limit=None,
        api_name="next_token",
    )

    def append(text: str, event: gr.EventData) -> str:
        return text + event.text

    result.pick(append, context, context, show_progress="hidden", api_visibility="private")


def words_tab(bind: Bind, models: gr.Dropdown) -> None:
    with gr.Row(elem_classes="inline"):
        word = gr.Textbox(label="Word", placeholder="peace", lines=1, max_lines=1)
        look_up = gr.Button("Find neighbours", variant="primary")
    nearest = gr.HTML(apply_default_css=False, elem_classes="answer", js_on_load=PICK)
    request = {
        "fn": bind(handlers.neighbours),
        "inputs": [models, word],
        "outputs": nearest,
        "show_progress": "hidden",
        "concurrency_limit": None,
    }
    gr.on([look_up.click, word.submit], **request, api_name="neighbours")

    def take(event: gr.EventData) -> str:
        return event.text

    nearest.pick(take, None, word, show_progress="hidden", api_visibility="private").then(
        **request, api_visibility="private"
    )
    with gr.Row(elem_classes=["inline", "analogy"]):
        three = [
            gr.Textbox(label=label, placeholder=example, lines=1, max_lines=1, min_width=90)
            for label, example in (("A", "france"), ("is to B", "paris"), ("as C", "spain"))
        ]
        solve = gr.Button("Solve analogy")
    answers = gr.HTML(apply_default_css=False, elem_classes="answer")
    gr.on(
        [solve.click, *(box.submit for box in three)],
        bind(handlers.analogy),
        [models, *three],
        answers,
        show_progress="hidden",
        concurrency_limit=None,
        api_name="analogy",
    )
