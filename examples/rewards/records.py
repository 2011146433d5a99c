"""Write the prompts of the guide to rewards: sentences about invented people, to be filled into a JSON record.

    python examples/rewards/records.py

records.jsonl has 200 prompts, other.jsonl 50 about other people; `record` is the right record of each. person.json is
the schema of a record.
"""

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

SENTENCES = (
    "{name}, {age}, lives in {city} and works as a {job}.",
    "The {job} {name} moved to {city} at the age of {age}.",
    "In {city} there is a {job} called {name}, who is {age} years old.",
    "{name} turned {age} last week. She is a {job} in {city}.",
    "Our {job} {name} from {city} is {age} years old.",
)
TASK = '{sentence}\nWrite this as JSON with the fields "name", "age", "city" and "job". Write the JSON alone.'
JOBS = ["teacher", "nurse", "baker", "pilot", "farmer", "painter", "driver", "singer", "lawyer", "gardener", "tailor"]
LEARNED = (
    ["Anna", "Clara", "Elif", "Greta", "Ines", "Lena", "Marta", "Olga", "Rosa", "Yuki", "Tilda", "Nora", "Paula"],
    ["Berg", "Costa", "Demir", "Endo", "Fischer", "Garcia", "Haas", "Ivanov", "Jensen", "Keller", "Lopez", "Meyer"],
    ["Oslo", "Porto", "Lyon", "Graz", "Turin", "Malmo", "Kyoto", "Ghent", "Bergen", "Leeds", "Cadiz", "Brno"],
)
OTHERS = (
    ["Beate", "Daria", "Fiona", "Hanna", "Jana", "Karin", "Mina", "Petra", "Selma", "Wanda"],
    ["Novak", "Okada", "Rossi", "Silva", "Tanaka", "Ulrich", "Vogel", "Weber"],
    ["Lodz", "Basel", "Tampere", "Varna", "Nantes", "Split", "Tartu", "Delft"],
)
"""First names, last names and cities."""
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "city": {"type": "string"},
        "job": {"type": "string"},
    },
    "required": ["name", "age", "city", "job"],
    "additionalProperties": False,
}


def prompts(parts: Sequence[Sequence[str]], seed: int) -> Iterator[dict[str, Any]]:
    """Yield prompts about different people, with their records."""
    rng, seen = random.Random(seed), set[tuple[str, str]]()
    while True:
        first, last, city = (rng.choice(part) for part in parts)
        record = {"name": f"{first} {last}", "age": rng.randint(18, 80), "city": city, "job": rng.choice(JOBS)}
        if (f"{first} {last}", city) not in seen:
            seen.add((f"{first} {last}", city))
            yield {"prompt": TASK.format(sentence=rng.choice(SENTENCES).format(**record)), "record": record}


def main() -> None:
    """Write the files."""
    for name, parts, count in (("records.jsonl", LEARNED, 200), ("other.jsonl", OTHERS, 50)):
        rows = prompts(parts, seed=count)
        lines = [json.dumps(next(rows)) for _number in range(count)]
        Path(name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {count} prompts")
    Path("person.json").write_text(json.dumps(SCHEMA, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
