"""TorchTrainable equals a plain training loop bit for bit; its options are checked by hand."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lexloom.training.job import step_seed
from lexloom.training.loop import train
from lexloom.training.stopping import Stopping
from lexloom.training.stream import ShardStream
from lexloom.training.torch_trainable import TorchTrainable
from lexloom.training.trainable import Batch, Differentiable, Evaluable
from tests.training.test_loop import result
from tests.training.toy import FEATURES, adam, classifier, cross_entropy, perceptron, points_job, sgd


def batch(rows: int = 10, seed: int = 0) -> Batch:
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, FEATURES)).astype(np.float32)
    return {"features": features, "label": generator.integers(0, 3, rows).astype(np.int32)}


def prepared(**options: Any) -> TorchTrainable:
    model = classifier(**options)
    model.prepare("cpu")
    return model


def gradients(model: TorchTrainable, batch: Batch) -> Tensor:
    model.backward(batch, seed=1)
    return torch.cat([gradient.flatten().clone() for gradient in model.gradients()])


def test_one_worker_equals_a_plain_training_loop_bit_for_bit(tmp_path: Path) -> None:
    plan = points_job(tmp_path, partial(classifier, dropout=0.3), stopping=Stopping(max_epochs=2))
    train(plan)

    torch.manual_seed(5)
    module = perceptron(0.3)
    optimizer = adam(module)
    stream = ShardStream(plan.files, plan.columns, batch_size=64, lanes=4, seed=7)
    done = 0
    for epoch in range(2):
        for place, arrays in enumerate(stream.read(stream.epoch(epoch))):
            torch.manual_seed(step_seed(7, epoch, place, 0))
            loss = cross_entropy(module, {name: torch.from_numpy(values) for name, values in arrays.items()})
            optimizer.zero_grad()
            loss.backward()
            optimizer.param_groups[0]["lr"] = 0.02 * (1 - done / 1000 / 2)
            optimizer.step()
            done += len(arrays["label"])
    assert done == 1000

    trained = result(plan).tensors
    for name, value in module.state_dict().items():
        assert torch.equal(trained[f"module.{name}"], value)
    for index, (name, _) in enumerate(module.named_parameters()):
        for key, value in optimizer.state_dict()["state"][index].items():
            assert torch.equal(trained[f"optimizer.{name}.{key}"], value)


def test_torch_trainable_satisfies_the_protocols() -> None:
    assert isinstance(classifier(), Differentiable)
    assert isinstance(classifier(), Evaluable)


@pytest.mark.parametrize("micro_batch", [1, 3, 10, 50])
def test_accumulated_gradients_equal_the_full_batchs(micro_batch: int) -> None:
    whole, parts = prepared(), prepared(micro_batch=micro_batch)
    assert torch.allclose(gradients(whole, batch()), gradients(parts, batch()), atol=1e-7)
    losses = [float(model.backward(batch(), seed=1)) for model in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)
    scores = [model.evaluate(batch()) for model in (whole, parts)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_gradients_are_clipped_by_their_global_norm() -> None:
    model = prepared(optimizer=sgd, clip=0.01, schedule=lambda progress: 1.0)
    before = torch.cat([table.flatten().clone() for table in model.tables().values()])
    assert gradients(model, batch()).norm() > 0.1
    model.update(progress=0.0)
    after = torch.cat([table.flatten() for table in model.tables().values()])
    assert (after - before).norm().item() == pytest.approx(0.2 * 0.01, rel=1e-3)


def test_parameter_groups_follow_the_schedule_from_their_base_lr() -> None:
    def two_groups(module: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            [{"params": module[0].parameters()}, {"params": module[3].parameters(), "lr": 3.0}], 1.0
        )

    model = prepared(optimizer=two_groups, schedule=lambda progress: 1 - progress)
    model.train_step(batch(), progress=0.75, seed=0)
    assert [group["lr"] for group in model.optimizer.param_groups] == [0.25, 0.75]
    assert model.learning_rate(0.75) == 0.25


def test_bfloat16_is_only_used_in_the_forward_pass() -> None:
    seen = []

    def loss(module: nn.Module, tensors: dict[str, Tensor]) -> Tensor:
        logits = module(tensors["features"])
        seen.append(logits.dtype)
        return nn.functional.cross_entropy(logits.float(), tensors["label"].long())

    models = [
        TorchTrainable(partial(perceptron, 0.0), loss, adam, bfloat16=choice) for choice in (False, True)
    ]
    for model in models:
        model.prepare("cpu")
        model.train_step(batch(), progress=0.0, seed=0)
    assert seen == [torch.float32, torch.bfloat16]
    assert all(table.dtype == torch.float32 for table in models[1].tables().values())


def test_empty_batch_has_zero_gradients_and_loss() -> None:
    model = prepared()
    model.backward(batch(), seed=0)
    empty = {name: values[:0] for name, values in batch().items()}
    assert model.backward(empty, seed=0) == 0.0
    assert all((gradient == 0).all() for gradient in model.gradients())
    assert len(model.gradients()) == len(model.tables())


def test_evaluation_sums_over_rows_without_dropout() -> None:
    noisy, quiet = prepared(dropout=0.5), prepared()
    total, rows = noisy.evaluate(batch())
    tensors = {name: torch.from_numpy(values) for name, values in batch().items()}
    assert rows == 10
    assert total == pytest.approx(10 * cross_entropy(quiet.module, tensors).item(), abs=1e-5)


def test_seed_determines_initial_parameters_and_dropout() -> None:
    models = [prepared(dropout=0.5) for _ in range(2)]
    torch.manual_seed(99)
    assert torch.equal(gradients(models[0], batch()), gradients(models[1], batch()))
    models[1].backward(batch(), seed=2)
    assert not torch.equal(models[0].gradients()[0], models[1].gradients()[0])


@pytest.mark.parametrize(
    "make",
    [
        lambda module: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1),
        lambda module: torch.optim.AdamW(module.parameters(), lr=0.1, weight_decay=0.1, amsgrad=True),
        lambda module: torch.optim.RMSprop(module.parameters(), lr=0.1, momentum=0.5),
        lambda module: torch.optim.Adagrad(module.parameters(), lr=0.1, initial_accumulator_value=0.1),
    ],
)
def test_optimizer_state_exists_before_the_first_step(make: Any) -> None:
    model = prepared(optimizer=make, schedule=lambda progress: 1.0)
    assert len(model.optimizer_tables()) >= len(model.tables())
    torch.manual_seed(5)
    module = perceptron(0.0)
    optimizer = make(module)
    tensors = {name: torch.from_numpy(values) for name, values in batch().items()}
    for _ in range(3):
        model.train_step(batch(), progress=0.0, seed=0)
        optimizer.zero_grad()
        cross_entropy(module, tensors).backward()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert torch.equal(model.tables()[name], parameter)


def test_state_is_loaded_and_mismatched_state_rejected() -> None:
    trained, fresh = prepared(), prepared(seed=6)
    trained.train_step(batch(), progress=0.0, seed=0)
    fresh.load_state_dict({name: value.clone() for name, value in trained.state_dict().items()})
    for model in (trained, fresh):
        model.train_step(batch(seed=1), progress=0.5, seed=0)
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value)
    with pytest.raises(ValueError, match="does not have the model's tensors"):
        prepared(optimizer=sgd).load_state_dict(trained.state_dict())
    narrow = trained.state_dict() | {"module.0.weight": torch.zeros(16, 1)}
    with pytest.raises(ValueError, match=r"module.0.weight is \(16, 1\) in the state and \(16, 4\)"):
        fresh.load_state_dict(narrow)


def test_shared_parameters_are_saved_once_and_frozen_ones_kept() -> None:
    def tied() -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
        module[1].weight = module[0].weight
        module[2].requires_grad_(False)
        return module

    model = TorchTrainable(tied, cross_entropy, adam)
    model.prepare("cpu")
    frozen = model.module[2].weight.clone()
    model.train_step(batch(), progress=0.0, seed=0)
    assert set(model.tables()) == {"0.weight", "0.bias", "1.bias"}
    saved = {name for name in model.state_dict() if name.startswith("module.")}
    assert saved == {f"module.{name}" for name in ("0.weight", "0.bias", "1.bias", "2.weight", "2.bias")}
    assert torch.equal(frozen, model.module[2].weight)


def test_unsupported_modules_and_optimizers_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"layer 0 \(BatchNorm1d\) keeps running statistics"):
        TorchTrainable(lambda: nn.Sequential(nn.BatchNorm1d(4)), cross_entropy, adam).prepare("cpu")
    with pytest.raises(ValueError, match="no trainable parameters"):
        TorchTrainable(lambda: nn.Linear(1, 1).requires_grad_(False), cross_entropy, adam).prepare("cpu")
    with pytest.raises(ValueError, match=r"NAdam has the state 0.weight.mu_product, which is neither"):
        prepared(optimizer=lambda module: torch.optim.NAdam(module.parameters()))
    with pytest.raises(ValueError, match="micro_batch is 0"):
        classifier(micro_batch=0)
