"""Commands that use a trained model: `neighbours`, `analogy`, `generate` and `classify`."""

import json as jsons
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from lexloom.deployments.cli.texts import FileOptions, growing_batches, read_texts
from lexloom.tasks.display.console import warn
from lexloom.tasks.display.formatting import counted
from lexloom.tasks.store.loading import load_classifier, load_language_model, load_word_vectors

Model = Annotated[str, Parameter(help="Model: its name, its key, a prefix of either, its folder, or latest.")]
Count = Annotated[int, Parameter(name="-k", help="Number of words to list.")]


def neighbours(model: Model, word: str, /, *words: str, k: Count = 10) -> None:
    """List the nearest neighbours of words by cosine similarity.

    Args:
        word: A word of the model's vocabulary.
        words: More words.
    """
    vectors = load_word_vectors(model)
    asked = [word, *words]
    for each, near in zip(asked, vectors.neighbours(asked, k), strict=True):
        print_ranking(vectors.spelling(each), near)


def analogy(model: Model, a: str, b: str, c: str, /, *, k: Count = 5) -> None:
    """Solve an analogy: A is to B as C is to which word?

    Args:
        a: First word of the known pair.
        b: Second word of the known pair.
        c: First word of the pair to complete.
    """
    vectors = load_word_vectors(model)
    a, b, c = (vectors.spelling(word) for word in (a, b, c))
    print_ranking(f"{a} is to {b} as {c} is to", vectors.analogy(a, b, c, k))


def print_ranking(title: str, ranking: list[tuple[str, float]]) -> None:
    print(title)
    for word, score in ranking:
        print(f"  {score:6.3f}  {word}")


def generate(
    model: Model,
    /,
    *,
    prompt: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True)] = None,
    tokens: int = 200,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Annotated[list[str] | None, Parameter(allow_leading_hyphen=True)] = None,
    stop_at_end: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Generate text with a language model.

    Args:
        prompt: Text to continue; repeatable.
        tokens: Maximum number of tokens to generate.
        temperature: Sampling temperature, by which the logits are divided; 0 is greedy decoding.
        top_k: Sample from the k most likely tokens; 0 samples from all.
        top_p: Sample from the smallest set of tokens whose probabilities sum to at least this.
        min_p: Sample from tokens whose probability is at least this fraction of the highest probability.
        repetition_penalty: Penalty for tokens that have already occurred; 1 disables it.
        seed: Random seed; the same seed generates the same text.
        stop: Stop generating at this text, which is not printed; repeatable.
        stop_at_end: Stop generating at the first end-of-text token. By default, the model continues with
            another text after a blank line.
    """
    from lexloom.models.sampling import Sampling, explain_no_text

    sampling = Sampling(
        max_tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
        stop_at_end=stop_at_end,
    )
    loaded = load_language_model(model)
    prompts = prompt or [""]
    starts = [loaded.prompt(each) for each in prompts]
    generated = [""] * len(prompts)
    if len(prompts) == 1:  # print a single text as it is generated
        print(starts[0], end="", flush=True)
    for pieces in loaded.generate(prompts, sampling):
        generated = [text + piece for text, piece in zip(generated, pieces, strict=True)]
        if len(prompts) == 1:
            print(pieces[0], end="", flush=True)
    print("" if len(prompts) == 1 else "\n\n".join(map("".join, zip(starts, generated, strict=True))))
    for start, text in zip(starts, generated, strict=True):
        if not text.strip():
            reason = explain_no_text(sampling).replace("stop_at_end", "--stop-at-end")
            warn(f"prompt {start!r}: {reason}")


def classify(
    model: Model,
    /,
    *texts: str,
    file: Path | None = None,
    options: FileOptions | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    json: bool = False,
) -> None:
    """Classify texts: print a label and a score for each, in order.

    For a missing or blank text, the line is empty (with --json, an object whose values are null).

    Args:
        texts: Texts to classify (default: the lines of stdin). Put -- first if a text begins with a hyphen.
        file: File whose lines or rows to classify.
        device: Device that runs the model.
        json: Print a JSON object per text, with the scores of all labels.
    """
    read = read_texts(texts, file, options or FileOptions())
    classifier = load_classifier(model, device)
    write = as_json if json else as_columns
    blank = 0
    for batch in growing_batches(read):
        rows = iter(classifier.probabilities([text for text in batch if text is not None]).tolist())
        for text in batch:
            print(write(None if text is None else dict(zip(classifier.labels, next(rows), strict=True))))
        blank += batch.count(None)
        sys.stdout.flush()
    if blank:
        warn(f"{counted(blank, 'texts')} skipped (missing or blank)")


def as_columns(scores: dict[str, float] | None) -> str:
    if scores is None:
        return ""
    label = most_likely(scores)
    return f"{label}\t{scores[label]:.4f}"


def as_json(scores: dict[str, float] | None) -> str:
    if scores is None:
        return jsons.dumps({"label": None, "score": None, "scores": None})
    label = most_likely(scores)
    rounded = {label: round(score, 4) for label, score in scores.items()}
    return jsons.dumps({"label": label, "score": rounded[label], "scores": rounded}, ensure_ascii=False)


def most_likely(scores: dict[str, float]) -> str:
    return max(scores, key=lambda label: scores[label])
