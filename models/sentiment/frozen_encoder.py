"""A Hugging Face encoder with a classifier, cut where its frozen part ends.

Below the cut lie the embeddings and the first blocks, which never change: their activations can be
computed once (`FrozenPart`). Above it lie the last blocks and the classifier, which are trained
(`TrainedPart`), from those activations or from token ids. Both run the model's own code with another list
of blocks, so they hold for any encoder whose blocks are one list, and what is trained goes back into a
checkpoint of the same architecture.

A classifier that reads position 0 alone needs of the last block that position's output alone
(`FirstPosition`): where a probe shows that nothing changes, that is what runs.

Legend: B texts, T tokens of the longest, D width, H heads, d = D / H, C labels.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import local
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PROBE_TEXTS, PROBE_TOKENS = 3, 6  # three: a batch of two would pass for the pair that some blocks return
PROBE_TOLERANCE = 0.01  # of how far the texts' logits lie apart; float32 leaves about 1e-5
MOST_WORKERS = 16  # each holds the activations of a batch

Item = TypeVar("Item")
Outcome = TypeVar("Outcome")


# loading


def load_classifier(folder: Path, labels: Sequence[str] | None = None) -> "PreTrainedModel":
    """The encoder in `folder` with a classifier on top, float32, in eval mode.

    With `labels` the classifier is for those, its weights drawn at random unless the folder has such ones;
    without, it is the folder's own. Nothing is downloaded, no code of the folder runs, nothing is unpickled.

    Raises:
        ValueError: the folder holds no encoder that transformers can put a classifier on.
    """
    from transformers import AutoModelForSequenceClassification  # here, since importing it takes seconds

    options: dict[str, Any] = {}
    if labels is not None:
        options = {
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
            "ignore_mismatched_sizes": True,
        }
    with quiet(), named_errors(folder, "an encoder"):
        model = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, weights_only=True, **options
        )
    return cast("PreTrainedModel", model.eval())


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """The tokenizer of a model folder.

    Raises:
        ValueError: there is none, or none in the form of the `tokenizers` library.
    """
    from transformers import AutoTokenizer

    with quiet(), named_errors(folder, "a tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not tokenizer.is_fast:
        raise ValueError(f"the tokenizer in {folder} has no tokenizer.json and can't be converted to one")
    return cast("PreTrainedTokenizerFast", tokenizer)


@contextmanager
def named_errors(folder: Path, what: str) -> Iterator[None]:
    """What transformers raises for a folder that it can't use, as one sentence."""
    try:
        yield
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"the folder {folder} can't be read as {what} by transformers: {said}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars, and without its warning that a new classifier is untrained."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def require_device(device: str) -> None:
    """ValueError where torch can't compute on it."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"the device {device} is asked for, and torch finds no GPU here: say cpu")


# finding the parts of a model, and changing them


def find_blocks(model: "PreTrainedModel") -> nn.ModuleList:
    """The list of the encoder's blocks, first to last.

    Raises:
        ValueError: there is no list of as many blocks as the config says (ALBERT shares one block, say).
    """
    depth = getattr(model.config, "num_hidden_layers", None)
    for module in model.base_model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    raise ValueError(
        f"{type(model).__name__} has no list of {depth} blocks to cut: take an encoder in the manner of BERT"
    )


def find_embeddings(model: "PreTrainedModel") -> nn.Module:
    """The part of the encoder that turns ids into the first block's input."""
    words, blocks = model.get_input_embeddings(), find_blocks(model)
    for part in model.base_model.children():
        inside = list(part.modules())
        if part is not words and words in inside and blocks not in inside:
            return part
    raise ValueError(
        f"{type(model).__name__} has no embeddings to cut off: take an encoder in the manner of BERT"
    )


def max_text_length(model: "PreTrainedModel") -> int | None:
    """How many tokens of a text the encoder has positions for; None where it needs none.

    An encoder in the manner of RoBERTa counts positions from behind that of its padding.
    """
    positions = getattr(model.config, "max_position_embeddings", None) or 0
    if positions < 1:
        return None
    unused = 0
    for name, module in model.base_model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            unused = 0 if module.padding_idx is None else module.padding_idx + 1
    return int(positions) - unused


def replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Puts `new` wherever `old` stands in the model."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if child is old:
                setattr(parent, name, new)


class Tap(nn.Module):
    """Stands where the encoder ends: changes nothing and keeps what it saw, for the thread that it saw it in.

    Whatever else the encoder asks of a block (ModernBERT its kind of attention) is that of `block`.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._block = (block,)  # a tuple: not a part of the model
        self._kept = local()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_block"][0], name)

    def forward(self, hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        self._kept.hidden = hidden
        return hidden

    @property
    def seen(self) -> Tensor:
        return self._kept.hidden


class Given(nn.Module):
    """Stands for embeddings: hands on the activations (B, T, D) that it is given in their place."""

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        values = (*arguments, *named.values())
        return next(x for x in values if isinstance(x, Tensor) and x.is_floating_point() and x.dim() == 3)


def ended(blocks: nn.ModuleList, cut: int) -> tuple[nn.ModuleList, Tap]:
    """The first `cut` blocks and then a tap, and that tap."""
    tap = Tap(blocks[min(cut, len(blocks) - 1)])
    return nn.ModuleList([*blocks[:cut], tap]), tap


def first_trained(blocks: nn.ModuleList, trainable_blocks: int) -> int:
    """Where the cut is: the number of frozen blocks."""
    if not 0 <= trainable_blocks <= len(blocks):
        raise ValueError(
            f"trainable_blocks is {trainable_blocks}, and the encoder has {len(blocks)} blocks: ask for 0 to"
            f" {len(blocks)}"
        )
    return len(blocks) - trainable_blocks


def probe(model: "PreTrainedModel") -> tuple[Tensor, Tensor]:
    """(ids, mask), both (B, T), of three short texts, one shorter than the others."""
    ids = torch.arange(PROBE_TEXTS * PROBE_TOKENS).view(PROBE_TEXTS, PROBE_TOKENS)
    mask = torch.ones_like(ids)
    mask[1, PROBE_TOKENS // 2 :] = 0
    return ids % model.config.vocab_size, mask


@torch.no_grad()
def gives_same_logits(expected: Tensor, changed: Callable[[], Tensor]) -> bool:
    """Whether a model that was changed gives the logits that it gave."""
    try:
        logits = changed()
    except Exception:  # another architecture's code may fail in any way: it is not made for the change
        return False
    if logits.shape != expected.shape:
        return False
    apart = (expected - expected.mean(0)).abs().max()
    return bool((logits - expected).abs().max() <= PROBE_TOLERANCE * apart)


# the last block


class FirstPosition(nn.Module):
    """A block as BERT has them, that computes its output at position 0 only: (B, T, D) to (B, 1, D).

    With one query a text, no token's key or value need be made, because a projection can change sides:
    q · (K x) = (Kᵀ q) · x, and the sum of a (V x) is V applied to the sum of a x. A token then costs 2 H D
    multiplications instead of 2 D D and those of the query, the output and the two dense layers. The keys'
    bias moves all scores of a head alike, and the softmax takes it out.

    `block` must be self-attention, add and norm, two dense layers, add and norm; its parts are told by their
    order (`is_made_so`), so that names don't matter.
    """

    def __init__(self, block: nn.Module, heads: int) -> None:
        super().__init__()
        self.block, self.heads = block, heads
        # in plain tuples, so that each parameter is registered once, as the block's
        self._linears = tuple(part for part in block.modules() if isinstance(part, nn.Linear))
        self._norms = tuple(part for part in block.modules() if isinstance(part, nn.LayerNorm))
        self._dropouts = tuple(part for part in block.modules() if isinstance(part, nn.Dropout))
        self._activations = tuple(
            part
            for part in block.modules()
            if not list(part.children()) and not isinstance(part, nn.Linear | nn.LayerNorm | nn.Dropout)
        )

    def is_made_so(self) -> bool:
        """Whether the block has the parts of a BERT block: what they compute is for a probe to say."""
        counts = [len(parts) for parts in (self._linears, self._norms, self._activations)]
        if counts != [6, 2, 1] or len(self._dropouts) not in (2, 3):
            return False
        query, key, value, out, inner, outer = [tuple(part.weight.shape) for part in self._linears]
        width = query[1]
        square = query == key == value == out == (width, width) and width % self.heads == 0
        return square and inner[1] == width and outer == inner[::-1]

    def forward(self, hidden: Tensor, attention_mask: Tensor | None = None, *_: Any, **__: Any) -> Tensor:
        """hidden: (B, T, D); attention_mask: (B or 1, 1, T or 1, T), bool or to be added, or none."""
        query, key, value, out, inner, outer = self._linears
        attention_dropout, *output_dropout, dense_dropout = self._dropouts
        batch, width = hidden.shape[0], hidden.shape[2]
        size = width // self.heads
        first = hidden[:, 0]  # (B, D)
        by_head = (self.heads, size, width)
        asked = torch.einsum("bhd,hdw->bhw", query(first).view(batch, *by_head[:2]), key.weight.view(by_head))
        scores = (hidden @ asked.transpose(1, 2)).transpose(1, 2) * size**-0.5  # (B, H, T)
        if attention_mask is not None:
            row = attention_mask[:, :, 0]  # (B, 1, T): position 0's
            scores = scores.masked_fill(~row, -torch.inf) if row.dtype == torch.bool else scores + row
        weights = attention_dropout(scores.softmax(-1))  # (B, H, T)
        met = torch.einsum("bhw,hdw->bhd", weights @ hidden, value.weight.view(by_head))
        total = weights.sum(-1, keepdim=True)  # (B, H, 1): 1, but for dropout
        met = met + total * value.bias.view(by_head[:2])
        answer = out(met.reshape(batch, width))
        for dropout in output_dropout:
            answer = dropout(answer)
        attended = self._norms[0](answer + first)  # (B, D)
        dense = dense_dropout(outer(self._activations[0](inner(attended))))
        return self._norms[1](dense + attended)[:, None]


def use_first_position_block(model: "PreTrainedModel") -> nn.ModuleList:
    """Lets the last block compute position 0 only, if the logits stay the same; returns the blocks."""
    blocks = find_blocks(model)
    last = FirstPosition(blocks[-1], model.config.num_attention_heads)
    if not last.is_made_so():
        return blocks
    ids, mask = probe(model)
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).logits
    short = nn.ModuleList([*blocks[:-1], last])
    replace(model, blocks, short)
    if gives_same_logits(expected, lambda: model(input_ids=ids, attention_mask=mask).logits):
        return short
    replace(model, short, blocks)
    return blocks


# the two parts


class FrozenPart(nn.Module):
    """Token ids to the activations that enter the first trained block. Takes `model` over.

    With `bfloat16` products are computed in it, sums and norms in float32.
    """

    def __init__(self, model: "PreTrainedModel", trainable_blocks: int, *, bfloat16: bool = False) -> None:
        super().__init__()
        blocks = find_blocks(model)
        lower, self._tap = ended(blocks, first_trained(blocks, trainable_blocks))
        replace(model, blocks, lower)
        self.encoder = model.base_model
        self._bfloat16 = bfloat16
        self.eval().requires_grad_(False)

    @torch.inference_mode()
    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """ids, mask: (B, T); returns (B, T, D), whose rows at masked positions mean nothing."""
        with torch.autocast(ids.device.type, torch.bfloat16, enabled=self._bfloat16):
            self.encoder(input_ids=ids, attention_mask=mask)
        return self._tap.seen


class TrainedPart(nn.Module):
    """The last blocks and the classifier: from the frozen part's activations, or from ids through all of it.

    Takes `model` over. With `from_activations` the frozen part is left out, and with it its memory; else it
    is there, frozen and in eval mode. Both give the same logits.

    Attributes:
        names: a parameter's name here -> its name in a checkpoint of the model.
    """

    def __init__(self, model: "PreTrainedModel", trainable_blocks: int, *, from_activations: bool) -> None:
        super().__init__()
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        blocks = find_blocks(model)
        cut = first_trained(blocks, trainable_blocks)
        embeddings = find_embeddings(model)
        ids, mask = probe(model)
        try:
            with torch.no_grad():
                expected = model(input_ids=ids, attention_mask=mask).logits
            frozen, activations = below(model, cut, ids, mask)
        except Exception as error:  # another architecture's blocks may take and give other things
            raise ValueError(
                f"an encoder of the type {model.config.model_type} can't be cut between its blocks: take"
                " one in the manner of BERT"
            ) from error
        for parameter in frozen:
            parameter.requires_grad_(False)
        short = use_first_position_block(model)
        self.model, self._from_activations = model, from_activations
        self._frozen: tuple[nn.Module, ...] = tuple(blocks[:cut])  # registered where the model has them
        if from_activations:
            replace(model, embeddings, Given())
            replace(model, short, short[cut:])
            if not gives_same_logits(expected, lambda: self(activations, mask)):
                raise ValueError(
                    f"{type(model).__name__} can't go on from its blocks' activations alone: train it with"
                    " --no-cache-features"
                )
        else:
            self._frozen += (embeddings,)
        self.names = {name: names[id(parameter)] for name, parameter in self.named_parameters()}

    def train(self, mode: bool = True) -> "TrainedPart":
        super().train(mode)
        for part in self._frozen:
            part.eval()
        return self

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """rows: (B, T, D) float32 activations, or (B, T) ids; mask: (B, T); returns logits (B, C)."""
        if self._from_activations:
            return self.model(inputs_embeds=rows, attention_mask=mask).logits
        return self.model(input_ids=rows, attention_mask=mask).logits


def below(model: "PreTrainedModel", cut: int, ids: Tensor, mask: Tensor) -> tuple[list[nn.Parameter], Tensor]:
    """The parameters that the activations before block number `cut` depend on, and those activations.

    The graph says so, not a list of names: some encoders share parameters between blocks.
    """
    blocks = find_blocks(model)
    lower, tap = ended(blocks, cut)
    replace(model, blocks, lower)
    parameters = list(model.parameters())
    with torch.enable_grad():
        model.base_model(input_ids=ids, attention_mask=mask)
        gradients = torch.autograd.grad(tap.seen.sum(), parameters, allow_unused=True)
    replace(model, lower, blocks)
    frozen = [parameter for parameter, met in zip(parameters, gradients, strict=True) if met is not None]
    return frozen, tap.seen.detach()


# texts of unlike lengths


def group_by_length(lengths: Sequence[int] | NDArray[np.integer], tokens: int) -> Iterator[NDArray[np.int64]]:
    """Groups of texts of nearly one length: the longest first, at most `tokens` each with their padding.

    Yields indices into `lengths`; a text longer than `tokens` makes a group by itself.
    """
    lengths = np.asarray(lengths)
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        end = start + max(1, tokens // max(1, int(lengths[order[start]])))
        yield order[start:end]
        start = end


def padded(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Rows of (T_i, ...) as one (B, T, ...), zeros after their ends, and the mask (B, T), int64."""
    mask = pad_sequence([torch.ones(len(row), dtype=torch.int64) for row in rows], batch_first=True)
    return pad_sequence(list(rows), batch_first=True), mask


def map_in_threads(work: Callable[[Item], Outcome], items: Sequence[Item], device: str) -> list[Outcome]:
    """`work` of every item, in order: on a CPU, items side by side instead of each on all threads.

    Threads that share one product wait for each other in every layer; side by side they don't. Torch's number
    of threads is the budget.
    """
    threads = torch.get_num_threads()
    workers = min(threads, len(items), MOST_WORKERS) if device == "cpu" else 1
    if workers <= 1:
        return [work(item) for item in items]
    each = threads // workers
    try:
        with ThreadPoolExecutor(workers, "encoder", torch.set_num_threads, (each,)) as pool:
            return list(pool.map(work, items))
    finally:
        torch.set_num_threads(threads)  # a part of it is one for all threads
