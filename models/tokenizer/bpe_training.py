"""Training of byte-pair ranks on a text (Sennrich et al., ACL 2016), by Hugging Face's `tokenizers`."""

import json
from collections.abc import Iterable

from lexloom.models.tokenizer.bpe_ranks import BYTE_VALUES, PUBLISHED, Ranks, from_byte_letters
from lexloom.models.tokenizer.tokenizer import BytePair

NAME = "bpe"
PATTERN = PUBLISHED["gpt2"].pattern  # of GPT-2, which all tools that read tokenizers know
MIN_VOCABULARY = BYTE_VALUES + 1  # the bytes and end of text
MAX_VOCABULARY = 1 << 20
MIN_FREQUENCY = 2  # of a pair; rarer ones are not merged


def train_byte_pairs(texts: Iterable[str], vocabulary: int) -> BytePair:
    """Train an encoding of at most `vocabulary` ids: the 256 bytes, merged tokens, and end of text.

    It has fewer ids if the texts have no more pairs that occur twice. The result does not depend on the
    number of threads.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # 0.1 s

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - 1,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    spelled: dict[str, int] = json.loads(tokenizer.to_str())["model"]["vocab"]
    ranks: Ranks = {from_byte_letters(token): rank for token, rank in spelled.items()}
    return BytePair(NAME, ranks, PATTERN, end_of_text=len(ranks))
