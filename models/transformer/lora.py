"""Low-rank adapters: trained products B A of rank r that are added to the frozen matrices of the blocks.

Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". The package peft computes them.
"""

from torch import nn

from lexloom.models.transformer.model import Transformer

# the blocks' matrices by their names in the network
TARGETS = ["query", "key", "value", "output", "gate", "up", "down"]
SCALE = 2  # of B A; peft's alpha / r


def add_adapters(model: Transformer, rank: int) -> Transformer:
    """Freeze a model, and add an adapter to each matrix of its blocks; B is zero, so logits do not change.

    Raises:
        ModuleNotFoundError: the package peft is not installed.
    """
    from peft import LoraConfig, inject_adapter_in_model  # takes seconds

    config = LoraConfig(r=rank, lora_alpha=SCALE * rank, lora_dropout=0.0, target_modules=TARGETS)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    inject_adapter_in_model(config, model)
    return model


def merge_adapters(model: Transformer) -> Transformer:
    """Add the adapters to the matrices and remove them, so that the model has its original parameters."""
    from peft.tuners.lora import LoraLayer

    for block in model.blocks:
        for parent in list(block.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, LoraLayer):
                    layer.merge()
                    base = layer.get_base_layer()
                    assert isinstance(base, nn.Linear)
                    setattr(parent, name, base)
    return model
