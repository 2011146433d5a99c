"""The endpoints for tokens, which are those of vLLM: `/tokenize`, `/detokenize`, `/tokenizer_info`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tsugiki.language import _
from tsugiki.serve.errors import ApiError
from tsugiki.serve.prompt_tokens import chat_prompt, check_tokens, decoded, text_prompts
from tsugiki.serve.protocol import DetokenizeRequest, TokenizeRequest, read
from tsugiki.serve.served_adapters import ServedAdapters, ServedModel

_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token")


def token_routes(adapters: ServedAdapters) -> list[Route]:
    """Return the routes of these endpoints."""
    engine, model = adapters.engine, adapters.engine.model

    @asynccontextmanager
    async def held(name: str | None) -> AsyncIterator[ServedModel]:
        served = await adapters.acquire(adapters.base.name if name is None else name)
        try:
            yield served
        finally:
            adapters.release(served)

    async def tokenize(request: Request) -> Response:
        parsed = await read(TokenizeRequest, request)
        async with held(parsed.model) as served:
            ids = await asyncio.to_thread(_ids, parsed, served)
            names = served.tokenizer.convert_ids_to_tokens(ids) if parsed.return_token_strs else None
        fields = {"count": len(ids), "max_model_len": engine.longest, "tokens": ids, "token_strs": names}
        return JSONResponse(fields)

    def _ids(parsed: TokenizeRequest, served: ServedModel) -> list[int]:
        if (parsed.prompt is None) == (parsed.messages is None):
            raise ApiError(400, _("give either prompt or messages"), "prompt", "invalid_value")
        if parsed.messages is not None:
            if parsed.add_special_tokens:
                message = _("the chat template decides on special tokens; leave {name} out").format(
                    name="add_special_tokens"
                )
                raise ApiError(400, message, "add_special_tokens", "invalid_value")
            return chat_prompt(model, served.name, served.tokenizer, parsed.messages).ids
        assert parsed.prompt is not None
        prompt = text_prompts(model, served.tokenizer, [parsed.prompt])[0]
        return prompt.shown if parsed.add_special_tokens is False else prompt.ids

    async def detokenize(request: Request) -> Response:
        parsed = await read(DetokenizeRequest, request)
        check_tokens(model, parsed.tokens, "tokens")
        async with held(parsed.model) as served:
            return JSONResponse({"prompt": await asyncio.to_thread(decoded, served.tokenizer, parsed.tokens)})

    async def info(request: Request) -> Response:
        tokenizer = adapters.base.tokenizer
        fields = {name: getattr(tokenizer, name, None) for name in _SPECIAL}
        fields |= {"tokenizer_class": type(tokenizer).__name__, "chat_template": tokenizer.chat_template}
        return JSONResponse(fields)

    return [
        Route("/tokenize", tokenize, methods=["POST"]),
        Route("/detokenize", detokenize, methods=["POST"]),
        Route("/tokenizer_info", info),
    ]
