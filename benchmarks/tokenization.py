"""Compare encodings: bits per byte of held-out text after the same training time.

    python benchmarks/tokenization.py --data tinyshakespeare.txt russian_literature.parquet
        [--text-column text] [--limit DOCUMENTS] [--seconds 60] [--seeds 3] [--sizes 512 1024 2048 4096 8192]

Each encoding (characters, byte pairs trained on the text with several vocabulary sizes, and GPT-2's byte
pairs that occur in it) encodes the same text, and the default transformer (`--preset tiny`) is trained for
the same number of seconds in one process. All encodings hold out the same documents, or the last tenth of a
single text. The seconds do not include encoding and the training of the tokenizer.

Results are written to benchmarks/results/tokenization.json.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from measure import stage_runner, summary, table, write_results

from lexloom.flows.transformer_lm import TransformerLMFlowConfig
from lexloom.tasks.corpus import WrittenCorpusConfig, corpus, locate_source
from lexloom.tasks.store.artifacts import Artifact
from lexloom.tasks.subwords import SubwordsConfig, locate_encoding, subwords
from lexloom.tasks.train.transformer import TrainTransformerConfig, train_transformer
from lexloom.tasks.train_tokenizer import TokenizerConfig, train_tokenizer
from lexloom.tasks.windows import windows

RESULTS = Path(__file__).parent / "results" / "tokenization.json"
SIZES = [512, 1024, 2048, 4096, 8192]
MANY_EPOCHS = 1000  # more than fit into the seconds


def encode(text: Artifact, name: str, size: int | None, folder: Path) -> Artifact:
    run = stage_runner(folder)
    config = SubwordsConfig(encoding=name, vocab_size=size)
    encoding: Any = (
        locate_encoding(config)
        if size is None
        else run(train_tokenizer, text, config=TokenizerConfig(vocab_size=size))
    )
    return run(subwords, text, encoding, config=config)


def measure(tokens: Artifact, seconds: float, seeds: int) -> dict[str, Any]:
    """Train one model per seed; return its figures."""
    figures: dict[str, list[float]] = {}
    for seed in range(1, seeds + 1):
        train = TrainTransformerConfig(
            runner="local", workers=1, epochs=MANY_EPOCHS, max_seconds=seconds, seed=seed
        )
        with tempfile.TemporaryDirectory() as name:
            run = stage_runner(Path(name))
            examples = run(windows, tokens, config=TransformerLMFlowConfig(train=train).windows())
            scratch = Path(name) / "scratch"
            model = run(train_transformer, examples, tokens, config=train, scratch=scratch)
            metrics = json.loads((model.folder / "metrics.json").read_text())
        for figure in ("bits_per_byte", "tokens_per_second", "epochs", "seconds"):
            figures.setdefault(figure, []).append(metrics[figure])
    lengths = tokens.facts
    return {
        "vocabulary": lengths["vocabulary"],
        "bytes per token": round(lengths["bytes"] / lengths["tokens"], 3),  # type: ignore[operator]
        **{figure: summary(values) for figure, values in figures.items()},
    }


def compare(source: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of each encoding of a text."""
    encodings: list[tuple[str, int | None]] = [
        ("characters", None),
        *(("bpe", size) for size in options.sizes),
    ]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = WrittenCorpusConfig(source=str(source), text_column=options.text_column, limit=options.limit)
        text = stage_runner(folder)(corpus, locate_source(config), config=config)
        print(f"{source.name}: {text.facts['bytes']:,} bytes", flush=True)
        for encoding, size in [*encodings, ("gpt2", None)]:
            label = f"{encoding} {size}" if size else encoding
            results[label] = measure(encode(text, encoding, size, folder), options.seconds, options.seeds)
            print(f"{label}: {results[label]['bits_per_byte']}", flush=True)
        return {"bytes": text.facts["bytes"], **results}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", type=Path, required=True)
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES)
    options = parser.parse_args()
    results = {source.name: compare(source, options) for source in options.data}
    for source, found in results.items():
        rows = [
            [
                label,
                f"{figures['vocabulary']:,}",
                f"{figures['bytes per token']:.2f}",
                f"{figures['bits_per_byte']['median']:.3f}",
            ]
            for label, figures in found.items()
            if label != "bytes"
        ]
        print(table([source, "vocabulary", "bytes per token", "bits per byte"], rows))
    settings = {name: getattr(options, name) for name in ("limit", "seconds", "seeds", "sizes")}
    write_results(RESULTS, {"settings": settings, "results": results})


if __name__ == "__main__":
    main()
