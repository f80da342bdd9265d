"""Train language models with default flags, as a new user would, and measure the losses that plans use.

    python benchmarks/budget.py runs --data tinyshakespeare.txt [--minutes 5] [--only characters auto]
    python benchmarks/budget.py scaling --data tinyshakespeare.txt [--tokens 0.5 1 2.5]

`runs`: whole commands, each with an empty store, on an otherwise idle machine:

characters   transformer-lm, characters of the data
auto         transformer-lm, the default encoding of the data
window-lm    window-lm on the packaged State of the Union addresses

Measured for each command: the plan, wall seconds of the command, seconds from its start to the first sample,
the loss on all held-out text, bits per byte and top-1 accuracy, and those of the n-gram model.

`scaling`: held-out loss, in nats per character, of several sizes and contexts after some millions of tokens.
The times are CPU seconds, which other processes affect little.

Results are written to benchmarks/results/budget.json.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import stage_runner, table, write_results

from lexloom.flows.transformer_lm import TransformerLMFlowConfig
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.subwords import SubwordsConfig, locate_encoding, subwords
from lexloom.tasks.train.transformer import TrainTransformerConfig, train_transformer
from lexloom.tasks.windows import windows

RESULTS = Path(__file__).parent / "results" / "budget.json"
RUNS = ("characters", "auto", "window-lm")
SIZES = ((4, 128), (4, 192), (6, 192), (6, 256))
CONTEXTS = (128, 256)
STEP_TOKENS = 2048
HEAD_WIDTH = 64


def run(name: str, data: Path, minutes: float | None) -> dict[str, Any]:
    """Run a command and return its figures."""
    flags = {
        "characters": ["transformer-lm", "--source", str(data), "--encoding", "characters"],
        "auto": ["transformer-lm", "--source", str(data)],
        "window-lm": ["window-lm"],
    }[name]
    if minutes is not None:
        flags += ["--minutes", str(minutes)]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "lexloom.deployments.cli.main", *flags, "--store", folder, "--json"]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert process.stdout is not None
        plan, first = "", None
        for line in process.stderr:
            print(f"{time.perf_counter() - started:6.1f}  {line}", end="", flush=True)
            if "planned: " in line:
                plan = line.partition("planned: ")[2].strip()
            if first is None and " sample: " in line:
                first = time.perf_counter() - started
        printed = process.stdout.read()
        if process.wait():
            raise RuntimeError(f"{' '.join(flags)} failed")
        wall = time.perf_counter() - started
        model = Path(json.loads(printed)["model"])
        metrics = json.loads((model / "metrics.json").read_text())
        (evaluation,) = Path(folder).glob("evaluate_lm/*/evaluation.json")
        found = json.loads(evaluation.read_text())
    ours, baseline = found["scores"][0], found["scores"][1]
    names = ("bits_per_byte", "top_1")
    return {
        "plan": plan,
        "wall seconds": round(wall, 1),
        "seconds to the first sample": None if first is None else round(first, 1),
        "training seconds": metrics["seconds"],
        "stop_reason": metrics["stop_reason"],
        "held-out loss": round(math.log(ours["perplexity"]), 4),
        **{figure: round(ours[figure], 4) for figure in names},
        **{f"{baseline['name']} {figure}": round(baseline[figure], 4) for figure in names},
        "validation curve": [
            [round(score["seconds"]), round(score["loss"], 4)] for score in metrics["scores"]
        ],
    }


def runs(options: argparse.Namespace) -> dict[str, Any]:
    results = {name: run(name, options.data, options.minutes) for name in options.only}
    for name, figures in results.items():
        print(table([name, ""], [[figure, str(value)] for figure, value in figures.items()]))
    return results


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """Return the loss of each size after each number of tokens."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        stages = stage_runner(Path(name))
        source = WrittenCorpusConfig(source=str(options.data))
        text = stages(corpus, locate_source(source), config=source)
        encoding = SubwordsConfig(encoding="characters")
        tokens = stages(subwords, text, locate_encoding(encoding), config=encoding)
        for millions in options.tokens:
            for layers, width in SIZES:
                for context in CONTEXTS:
                    config = TrainTransformerConfig(
                        layers=layers,
                        width=width,
                        heads=width // HEAD_WIDTH,
                        context=context,
                        batch_size=STEP_TOKENS // context,
                        epochs=1000,
                        max_steps=round(millions * 1e6 / STEP_TOKENS),
                        evaluate_every=10**9,
                        matrix_learning_rate=0.03,
                        momentum=0.9,
                        runner="local",
                        workers=1,
                        threads=1,
                    )
                    examples = stages(windows, tokens, config=TransformerLMFlowConfig(train=config).windows())
                    started = time.process_time()
                    model = stages(
                        train_transformer, examples, tokens, config=config, scratch=Path(name) / "scratch"
                    )
                    rows.append(
                        {
                            "layers": layers,
                            "width": width,
                            "context": context,
                            "million tokens": millions,
                            "loss": round(model.facts["validation_loss"], 4),
                            "cpu seconds": round(time.process_time() - started),
                        }
                    )
                    print(rows[-1], flush=True)
    print(table(list(rows[0]), [list(map(str, row.values())) for row in rows]))
    return {"rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="part", required=True)
    for part in ("runs", "scaling"):
        command = commands.add_parser(part)
        command.add_argument("--data", type=Path, required=True)
        if part == "runs":
            command.add_argument("--minutes", type=float, default=None, help="default: that of each command")
            command.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
        else:
            command.add_argument("--tokens", nargs="+", type=float, default=[0.5, 1.0, 2.5], help="millions")
    options = parser.parse_args()
    options.data = options.data.absolute()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    found = json.loads(RESULTS.read_text())["results"] if RESULTS.exists() else {}
    new = runs(options) if options.part == "runs" else scaling(options)
    write_results(RESULTS, {"results": found | {options.part: found.get(options.part, {}) | new}})


if __name__ == "__main__":
    main()
