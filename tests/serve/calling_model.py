"""A tiny model that calls a tool, and answers by its result."""

from pathlib import Path
from typing import Any

import torch

from tests.data.chat_templates import TOOLS, Shape, tokenizer_of
from tests.tiny import tiny_model
from tsugiki.data import encode_records, read_row

ASK = {"role": "user", "content": "Rain in Kyoto?"}
CITY = {"type": "object", "properties": {"city": {"$ref": "#/$defs/City"}}, "required": ["city"]}
CITY = {**CITY, "$defs": {"City": {"enum": ["Kyoto", "Nara"]}}}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Rain?", "parameters": CITY}}
COUNT = {"type": "object", "properties": {"n": {"enum": [1, 2]}}, "required": ["n"]}
LIGHT = {"type": "function", "function": {"name": "light", "description": "A lamp.", "parameters": COUNT}}
CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Kyoto"}'}}
RESULT = {"role": "tool", "tool_call_id": "a1b2c3d4e", "content": "dry"}
CALLED = [ASK, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
ROWS = [CALLED, [*CALLED, RESULT, {"role": "assistant", "content": "No."}]]


def save_calling_model(folder: Path, shape: Shape = TOOLS, tool: Any = WEATHER, rows: Any = ROWS) -> str:
    """Train it on rows with tools, until it writes their last turns greedily."""
    tokenizer = tokenizer_of(shape)
    records = [read_row({"messages": messages, "tools": [tool]}, "rows.jsonl:1") for messages in rows]
    torch.manual_seed(0)
    model = tiny_model("qwen3", vocab_size=len(tokenizer), max_position_embeddings=1024)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    encoded = encode_records(tokenizer, [record for record in records if record], "last")
    loss = 1.0
    while loss > 0.005:  # so no token of a row can have a loss of 0.7, and each is the most probable one
        loss = 0.0
        for row in encoded:
            tokens = torch.tensor([row.ids])
            of_row = model(input_ids=tokens, labels=tokens.where(torch.tensor([row.loss_mask]), -100)).loss
            of_row.backward()
            loss += of_row.item()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
