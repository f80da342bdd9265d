"""The model server's API: what OpenAI's clients send and expect, and what it refuses."""

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import pytest
import torch

from lexloom.deployments.cli.serve import load_served
from lexloom.deployments.model_server.app import model_app
from lexloom.models.language_model import LanguageModel
from lexloom.models.sampling import Sampling
from lexloom.tasks.store.artifacts import Store
from lexloom.tasks.store.names import name_model
from tests.deployments.store import tokenizer

ADDRESS = "http://127.0.0.1:8000"
Ask = Callable[..., httpx.Response]


@pytest.fixture
def ask(filled: Store, names: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Send a request to a server of one of the four models."""
    monkeypatch.setenv("LEXLOOM_STORE", str(filled.root))

    def send(
        kind: str, path: str, body: Any = None, key: str | None = None, **options: Any
    ) -> httpx.Response:
        served = load_served(names[kind], "cpu")
        app = model_app(served, "127.0.0.1", api_key=key)

        async def run() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=ADDRESS) as client:
                if body is None and not options.get("content"):
                    return await client.get(path, **options)
                given = {} if body is None else {"json": body}
                return await client.post(path, **given, **options)

        return asyncio.run(run())

    return send


def completion(**changes: Any) -> dict[str, Any]:
    return {"model": "t1", "prompt": "the people", "max_tokens": 5, "seed": 3, **changes}


def greedy(model: LanguageModel, prompt: str, tokens: int) -> str:
    steps = model.generate([prompt], Sampling(max_tokens=tokens, temperature=0, stop_at_end=True))
    return "".join(piece for (piece,) in steps)


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = response.text.split("\n\n")
    assert parts[-2:] == ["data: [DONE]", ""]
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-2]]


def problem(response: httpx.Response) -> dict[str, Any]:
    (error,) = response.json().values()
    assert set(error) == {"message", "type", "param", "code"}
    return dict(error)


def test_a_completion_is_the_models_text(ask: Ask) -> None:
    answer = ask("transformer", "/v1/completions", completion(temperature=0, max_tokens=3)).json()
    assert answer["object"] == "text_completion"
    assert answer["id"].startswith("cmpl-")
    assert answer["model"] == "t1"
    assert answer["usage"] == {"prompt_tokens": 10, "completion_tokens": 3, "total_tokens": 13}
    (choice,) = answer["choices"]
    expected = greedy(load_served("t1", "cpu").model, "the people", 3)
    assert choice["text"] == expected
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}


def reciting_model(text: str) -> LanguageModel:
    """Return a language model that continues every prompt of ten characters with `text` and its end."""
    ours = tokenizer()
    script = [*ours.encode(text), ours.end_of_text]

    def logits(texts: Sequence[Sequence[int]]) -> torch.Tensor:
        scores = torch.zeros(1, ours.size)
        scores[0, script[len(texts[0]) - 10]] = 1000.0
        return scores

    return LanguageModel(ours, None, lambda: logits, lambda *windows: (None, torch.empty(0)))


@pytest.mark.parametrize(
    ("changes", "text", "finish", "tokens"),
    [
        ({"max_tokens": 4}, " of ", "length", 4),
        ({"max_tokens": 13}, " of the union", "length", 13),
        ({"max_tokens": 14}, " of the union", "stop", 14),
        ({"max_tokens": 100}, " of the union", "stop", 14),
        ({"max_tokens": 100, "stop": "the"}, " of ", "stop", 7),
        ({"max_tokens": 7, "stop": ["z", "the"]}, " of ", "stop", 7),
        ({"max_tokens": 6, "stop": "the"}, " of th", "length", 6),
        ({"max_tokens": None}, " of the union", "stop", 14),
    ],
)
def test_a_text_ends_at_its_length_a_stop_string_or_an_end_of_text_token(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, changes: Any, text: str, finish: str, tokens: int
) -> None:
    model = reciting_model(" of the union")
    monkeypatch.setattr("lexloom.models.registry.ModelFamily.load", lambda *given: model)
    answer = ask("transformer", "/v1/completions", completion(**changes)).json()
    assert answer["choices"] == [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]
    assert answer["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": tokens,
        "total_tokens": 10 + tokens,
    }


def test_a_stream_has_the_same_text_and_seed_as_the_whole(ask: Ask) -> None:
    for model in ("transformer", "window"):
        body = completion(model=model[0] + "1", max_tokens=12)
        whole = ask(model, "/v1/completions", body).json()
        parts = events(
            ask(model, "/v1/completions", body | {"stream": True, "stream_options": {"include_usage": True}})
        )
        *chunks, last = parts
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole["choices"][0]["text"]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
        assert (last["choices"], last["usage"]) == ([], whole["usage"])
        assert len({chunk["id"] for chunk in parts}) == 1


def test_several_prompts_give_several_choices(ask: Ask) -> None:
    body = completion(prompt=["the people", ""], temperature=0)
    answer = ask("transformer", "/v1/completions", body).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["choices"][1]["text"] == greedy(load_served("t1", "cpu").model, "", 5)
    assert answer["usage"]["prompt_tokens"] == 10


def test_without_a_seed_texts_differ(ask: Ask) -> None:
    texts = {
        ask("transformer", "/v1/completions", completion(seed=None, max_tokens=30)).json()["choices"][0][
            "text"
        ]
        for _ in range(3)
    }
    assert len(texts) > 1


@pytest.mark.parametrize(
    ("changes", "param", "message"),
    [
        ({"n": 2}, "n", "n should be less than or equal to 1"),
        ({"best_of": 2}, "best_of", "best_of should be"),
        ({"echo": True}, "echo", "echo should be"),
        ({"logprobs": 1}, "logprobs", "logprobs should be None"),
        ({"presence_penalty": 0.5}, "presence_penalty", "presence_penalty should be"),
        ({"top_k": 5}, "top_k", "unknown or unsupported parameter top_k"),
        ({"max_tokens": 0}, "max_tokens", "max_tokens should be greater than or equal to 1"),
        ({"max_tokens": 10**9}, "max_tokens", "max_tokens should be less than or equal to 4096"),
        ({"temperature": -1}, "temperature", "temperature should be greater"),
        ({"temperature": "NaN"}, "temperature", "temperature should be"),
        ({"top_p": 0}, "top_p", "top_p should be greater than 0"),
        ({"seed": -1}, "seed", "seed should be"),
        ({"stop": [""]}, "stop", "stop must be a string of 1 to 1,000 characters"),
        ({"stop": ["x"] * 5}, "stop", "stop must have at most 4 strings, not 5"),
        ({"prompt": [1, 2]}, "prompt", "prompt must be a string or a list of strings; token ids are not"),
        ({"prompt": []}, "prompt", "prompt must have 1 to 32 texts, not 0"),
        ({"prompt": ["x"] * 33}, "prompt", "prompt must have 1 to 32 texts, not 33"),
        ({"prompt": "x" * 100_001}, "prompt", "prompt has 100,001 characters; the limit is 100,000"),
        ({"prompt": None}, "prompt", "prompt must be a string"),
        ({"stream_options": {"x": 1}}, "stream_options", "unknown or unsupported parameter stream_options.x"),
    ],
)
def test_a_wrong_or_unsupported_parameter_is_one_sentence(
    ask: Ask, changes: dict[str, Any], param: str, message: str
) -> None:
    response = ask("transformer", "/v1/completions", completion(**changes))
    assert response.status_code == 400
    found = problem(response)
    assert found["message"].startswith(message)
    assert (found["type"], found["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "the body is not valid JSON"),
        (b"[1]", "the body must be a JSON object"),
        (b"null", "the body must be a JSON object"),
        (b"{}", "the parameter model is required"),
        (b'{"model": "t1", "prompt": "\\ud800"}', "the text has a lone surrogate"),
        (b"[" * 100_000, "There was an error parsing the body"),
        (b'{"model": "t1", "temperature": NaN}', "temperature should be"),
    ],
)
def test_a_malformed_body_is_one_sentence(ask: Ask, content: bytes, message: str) -> None:
    response = ask(
        "transformer", "/v1/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 400
    assert problem(response)["message"].startswith(message)


def test_a_prompt_that_the_tokenizer_does_not_know_is_the_clients_error(ask: Ask) -> None:
    for stream in (False, True):
        response = ask("transformer", "/v1/completions", completion(prompt="Ωmega", stream=stream))
        assert response.status_code == 400
        assert "Ω" in problem(response)["message"]


def test_a_prompt_longer_than_the_context_is_continued(ask: Ask) -> None:
    response = ask("transformer", "/v1/completions", completion(prompt="the people of " * 5_000))
    assert response.json()["usage"]["prompt_tokens"] == 70_000


def test_a_body_that_is_too_large_is_refused(ask: Ask) -> None:
    response = ask(
        "transformer",
        "/v1/completions",
        content=b'"' + b"x" * (1 << 20),
        headers={"Content-Type": "application/json"},
    )
    assert response.status_code == 413
    assert problem(response)["message"] == "the body has more than 1,048,576 bytes: shorten it"


def test_another_model_and_another_path_are_not_found(ask: Ask) -> None:
    response = ask("transformer", "/v1/completions", completion(model="gpt-4"))
    assert response.status_code == 404
    assert problem(response)["code"] == "model_not_found"
    assert problem(response)["message"] == "the model 'gpt-4' does not exist: this server serves 't1'"
    for kind, path in (("transformer", "/v1/chat/completions"), ("words", "/v1/completions")):
        response = ask(kind, path, completion())
        assert response.status_code == 404
        assert problem(response)["message"].startswith(f"unknown path {path}: this server has /v1/models")
    assert ask("transformer", "/v1/completions").status_code == 405


def test_the_model_is_listed(ask: Ask, filled: Store) -> None:
    card = {"id": "t1", "object": "model", "created": 1578052800, "owned_by": "lexloom"}
    assert ask("transformer", "/v1/models").json() == {"object": "list", "data": [card]}
    assert ask("transformer", "/v1/models/t1").json() == card
    assert ask("transformer", "/v1/models/train_transformer/t1").json() == card
    assert ask("transformer", "/v1/models/other").status_code == 404
    assert ask("transformer", "/health").json() == {"status": "ok"}


def test_texts_are_classified(ask: Ask) -> None:
    answer = ask("classifier", "/classify", {"input": ["good film", "bad"]}).json()
    assert answer["model"] == "s1"
    first, second = answer["data"]
    assert (first["index"], second["index"]) == (0, 1)
    assert set(first["scores"]) == {"bad", "good"}
    assert sum(first["scores"].values()) == pytest.approx(1)
    assert first["score"] == max(first["scores"].values()) == first["scores"][first["label"]]
    assert ask("classifier", "/classify", {"input": "bad"}).json()["data"][0]["scores"] == pytest.approx(
        second["scores"]
    )
    for wrong, message in (
        ("", "text 1 of 1 is empty"),
        ([], "input must be"),
        ("x" * 20_001, "input has a"),
    ):
        response = ask("classifier", "/classify", {"input": wrong})
        assert response.status_code == 400
        assert problem(response)["message"].startswith(message)


def test_neighbours_of_words(ask: Ask) -> None:
    answer = ask("words", "/neighbours", {"input": ["war", "peace"], "k": 1}).json()
    assert [(each["word"], each["neighbours"][0]["word"]) for each in answer["data"]] == [
        ("war", "wars"),
        ("peace", "treaty"),
    ]
    assert answer["data"][0]["neighbours"][0]["similarity"] == pytest.approx(0.9848, abs=1e-4)
    response = ask("words", "/neighbours", {"input": "nonsense"})
    assert response.status_code == 400
    assert problem(response)["message"].startswith("'nonsense' is not in the vocabulary of 6 words")


# access


def test_an_api_key_is_required_if_there_is_one(ask: Ask) -> None:
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        response = ask("transformer", "/v1/models", key="secret", headers=given)
        assert response.status_code == 401
        assert problem(response)["code"] == "invalid_api_key"
        assert "secret" not in response.text
    given = {"Authorization": "Bearer secret"}
    assert ask("transformer", "/v1/models", key="secret", headers=given).status_code == 200
    assert ask("transformer", "/health", key="secret").status_code == 200


def test_requests_of_other_sites_are_refused(ask: Ask) -> None:
    for given in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Host": "evil.example:8000"},
    ):
        assert ask("transformer", "/v1/models", headers=given).status_code == 403
    response = ask("transformer", "/v1/completions", content=b"{}", headers={"Content-Type": "text/plain"})
    assert response.status_code == 403


def test_an_error_inside_a_model_is_reported_without_details(
    ask: Ask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*given: object) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(LanguageModel, "generate", fail)
    response = ask("transformer", "/v1/completions", completion())
    assert response.status_code == 500
    assert problem(response)["type"] == "server_error"
    assert "secret path" not in response.text
    assert "secret path" in caplog.text


def test_a_model_has_its_names_as_ids(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEXLOOM_STORE", str(filled.root))
    for name in ("plays", "production"):
        name_model(filled, ("train_transformer", "t1"), name)
    try:
        served = load_served("prod", "cpu")
    finally:
        (filled.root / "names.json").unlink()
    assert served.name == "production"
    assert served.aliases == {"prod", "production", "plays", "t1", "train_transformer/t1"}
