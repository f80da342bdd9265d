"""The transformer as a family of language models."""

from functools import partial
from pathlib import Path

from lexloom.models.language_model import LanguageModel
from lexloom.models.registry import ModelFamily
from lexloom.models.transformer import hf_io
from lexloom.models.transformer.model import CachedDecoder

FAMILY = ModelFamily(
    kind="transformer",
    title="transformer",
    stage="train_transformer",
    capability="generate",
    exports={"gguf": ".gguf"},
)


def load(folder: Path, device: str = "cpu") -> LanguageModel:
    """Load the language model in `folder`; raise the errors of `hf_io.load`."""
    network = hf_io.load(folder).to(device)
    return LanguageModel.of_network(
        network, folder, new_decoder=partial(CachedDecoder, network), context=network.config.context
    )


def export(folder: Path, to: str, file: Path) -> list[str]:
    """Write the model in `folder` as GGUF, the only format; see `export_gguf`."""
    from lexloom.models.transformer.gguf_export import export_gguf

    return export_gguf(folder, file)
