"""`/v1/completions`: text generation with the parameters and responses of OpenAI's API.

A request with an unsupported parameter fails, so that no parameter is silently ignored. As in OpenAI's API,
generation stops at an end-of-text token.
"""

import secrets
import time
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from lexloom.deployments.model_server.turns import Steps
from lexloom.models.language_model import LanguageModel
from lexloom.models.sampling import Sampling

MAX_TOKENS = 4_096  # per text
MAX_PROMPTS = 32
MAX_PROMPT_CHARACTERS = 100_000  # of all prompts of a request
MAX_STOPS, MAX_STOP_CHARACTERS = 4, 1_000
Zero = Annotated[float, Field(ge=0, le=0)]
One = Annotated[int, Field(ge=1, le=1)]


def check_prompt(prompt: Any) -> Any:
    prompts = prompt if isinstance(prompt, list) else [prompt]
    if not all(isinstance(each, str) for each in prompts):
        raise ValueError("must be a string or a list of strings; token ids are not supported")
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise ValueError(f"must have 1 to {MAX_PROMPTS} texts, not {len(prompts)}: send several requests")
    characters = sum(map(len, prompts))
    if characters > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"has {characters:,} characters; the limit is {MAX_PROMPT_CHARACTERS:,}: shorten it")
    return prompts


def check_stop(stop: Any) -> Any:
    stops = [] if stop is None else stop if isinstance(stop, list) else [stop]
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_STOP_CHARACTERS for each in stops):
        raise ValueError(f"must be a string of 1 to {MAX_STOP_CHARACTERS:,} characters or a list of them")
    if len(stops) > MAX_STOPS:
        raise ValueError(f"must have at most {MAX_STOPS} strings, not {len(stops)}")
    return stops


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    include_obfuscation: Annotated[bool | None, Field(description="has no effect")] = None


class CompletionRequest(BaseModel):
    """The body of a request. Unsupported parameters accept only their default."""

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: Annotated[list[str], BeforeValidator(check_prompt)] = [""]
    max_tokens: int | None = Field(16, ge=1, le=MAX_TOKENS)
    temperature: float | None = Field(1.0, ge=0, le=2)
    top_p: float | None = Field(1.0, gt=0, le=1)
    stop: Annotated[list[str], BeforeValidator(check_stop)] = []
    seed: int | None = Field(None, ge=0, lt=1 << 62)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    user: str | None = None  # an identifier, which has no effect
    n: One | None = 1
    best_of: One | None = 1
    echo: Annotated[bool, Field(le=False)] | None = False
    logprobs: None = None
    logit_bias: None = None
    suffix: None = None
    presence_penalty: Zero | None = 0
    frequency_penalty: Zero | None = 0

    def sampling(self, number: int) -> Sampling:
        """Return the sampling options of the text with this number; without a seed, draw a random one."""
        return Sampling(
            max_tokens=16 if self.max_tokens is None else self.max_tokens,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=secrets.randbelow(1 << 62) if self.seed is None else self.seed + number,
            stop=tuple(self.stop),
            stop_at_end=True,
        )


def complete(model: LanguageModel, request: CompletionRequest) -> Steps:
    """Yield None after each token, and the whole response at the end; for a stream, yield its parts."""
    completion = {
        "id": f"cmpl-{uuid.uuid4().hex}",
        "object": "text_completion",
        "created": int(time.time()),
        "model": request.model,
    }
    choices: list[dict[str, Any]] = []
    prompt_tokens = completion_tokens = 0
    with_usage = request.stream_options is not None and request.stream_options.include_usage
    more = {"usage": None} if with_usage else {}
    for number, prompt in enumerate(request.prompt):
        sampling = request.sampling(number)
        prompt_tokens += len(model.tokenizer.encode(model.prompt(prompt)))
        text, pieces = "", 0
        for (piece,) in model.generate([prompt], sampling):
            text += piece
            pieces += 1
            if request.stream and piece:
                yield {**completion, "choices": [choice(number, piece, None)], **more}
            else:
                yield None
        # the model yields a piece for each token, and a last one unless it has found a stop string
        completion_tokens += min(pieces, sampling.max_tokens)
        finish = "length" if pieces > sampling.max_tokens else "stop"
        choices.append(choice(number, text, finish))
        if request.stream:
            yield {**completion, "choices": [choice(number, "", finish)], **more}
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if not request.stream:
        yield {**completion, "choices": choices, "usage": usage}
    elif with_usage:
        yield {**completion, "choices": [], "usage": usage}


def choice(index: int, text: str, finish_reason: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish_reason}
