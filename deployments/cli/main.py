"""The `lexloom` command: a subcommand for each flow, and others for models, the store and the servers."""

import sys
from collections.abc import Sequence

from cyclopts import App, Group

from lexloom.flows.command import FLOWS, begin, flow_command, new_app, run
from lexloom.flows.registry import flows

# group -> command -> (function in this folder, imported when the command runs; help)
COMMANDS = {
    "Use a model": {
        "neighbours": ("models:neighbours", "List the nearest neighbours of words, by cosine similarity."),
        "analogy": ("models:analogy", "Solve an analogy: A is to B as C is to which word?"),
        "generate": ("models:generate", "Generate text with a language model."),
        "classify": ("models:classify", "Print a label and a score for each text."),
        "export": ("export:export", "Export a model to the file format of another tool."),
    },
    "Inspect": {
        "models": ("model_list:models", "List the models in the store, newest first."),
        "status": ("status:status", "Show active stages, the latest runs and the size of the store."),
        "store": ("store:app", "List, verify, explain and remove the artifacts of the store."),
    },
    "Serve": {
        "serve": ("serve:serve", "Serve a model over HTTP (OpenAI-compatible for language models)."),
        "app": ("servers:open_app", "Serve a web page for trying out the models in the store."),
        "ui": ("servers:open_ui", "Start a Prefect server with the flows deployed, and run their flow runs."),
        "deploy": ("servers:deploy", "Deploy the flows to the Prefect server at PREFECT_API_URL."),
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status (see `lexloom.flows.command.run`)."""
    argv = sys.argv[1:] if argv is None else argv
    return run(build_app, argv)


def build_app(argv: Sequence[str]) -> App:
    """Return the command line. Only flows named in `argv` get flags: importing a flow takes seconds."""
    app = new_app()
    for name, entry in flows().items():
        if name in argv:
            if argv[0] == name:
                begin(name, argv)
            app.command(flow_command(entry, argv))
        else:
            app.command(App(name=name, help=f"{entry.purpose}.", group=FLOWS))
    for order, (title, commands) in enumerate(COMMANDS.items(), 1):
        group = Group(title, sort_key=order)
        for name, (function, purpose) in commands.items():
            app.command(f"{__package__}.{function}", name=name, help=purpose, group=group)
    return app


if __name__ == "__main__":
    sys.exit(main())
