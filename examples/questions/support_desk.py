"""Write the questions and answers of an invented support desk: rows to train on, and questions to count right answers.

The product, an electric bicycle named Heron, does not exist, so no base knows its error codes, part numbers and opening
hours. `support.csv` asks for each of 50 facts in ten wordings. `other.csv` and `questions.jsonl` ask for the same facts
in wordings that no row of it has: as held-out text, and with the words by which a right answer is counted.
`unknown.jsonl` asks for ten facts that no row has. The files are written to the working directory.
"""

import csv
import json
import random
from pathlib import Path

CODES = {
    "E11": ("the battery is too cold", "Keep it indoors for an hour"),
    "E14": ("the brake sensor is loose", "Press it back into the left lever"),
    "E17": ("the charger is not original", "Use the charger with the blue label"),
    "E22": ("the speed sensor is dirty", "Wipe it with a dry cloth"),
    "E25": ("the display cable is unplugged", "Push the plug in until it clicks"),
    "E28": ("the motor is too hot", "Wait ten minutes in the shade"),
    "E31": ("the chain has come off", "Put it back on the smallest gear"),
    "E36": ("the front light is broken", "Order a new bulb"),
    "E39": ("the wheel magnet is missing", "Ask a service point for a new one"),
    "E42": ("the firmware is out of date", "Update it in the app"),
    "E47": ("the battery lock is open", "Turn the key to the right"),
    "E53": ("the torque sensor has failed", "Bring the bicycle to a service point"),
    "E58": ("water is in the connector", "Let it dry overnight"),
    "E61": ("the gear cable is too short", "Have it replaced"),
    "E64": ("the fuse is blown", "Replace it with one of ten amperes"),
    "E69": ("the SIM card is locked", "Enter the code from the letter"),
    "E72": ("the tyre pressure is too low", "Inflate both tyres to four bar"),
    "E77": ("the clock has stopped", "Set the time in the app"),
    "E83": ("the alarm is switched on", "Hold the key near the display"),
    "E88": ("the memory is full", "Delete the old rides"),
}
PARTS = {
    "rear light": "HR-4127",
    "charger": "HR-2260",
    "bell": "HR-9031",
    "saddle": "HR-5518",
    "kickstand": "HR-7743",
    "left pedal": "HR-3306",
    "chain guard": "HR-8092",
    "brake lever": "HR-1465",
    "display": "HR-6871",
    "battery key": "HR-2954",
    "front mudguard": "HR-4480",
    "luggage rack": "HR-7119",
    "spoke set": "HR-3637",
    "inner tube": "HR-5202",
    "handlebar grip": "HR-9958",
    "motor cover": "HR-1783",
    "child seat": "HR-6346",
    "phone holder": "HR-8415",
}
TOWNS = {
    "Norwick": "from 8:30 to 17:00",
    "Ashmoor": "from 9:15 to 18:30",
    "Tillbury": "from 7:45 to 12:00",
    "Eastgrove": "from 10:00 to 19:45",
    "Lindhurst": "from 6:30 to 14:30",
    "Marrow Bay": "from 11:15 to 20:00",
    "Copperfield": "from 13:00 to 21:15",
    "Saint Olave": "from 8:00 to 11:30",
    "Wexcombe": "from 12:30 to 16:45",
    "Harlow Mill": "from 9:45 to 13:15",
    "Birchford": "from 14:15 to 22:00",
    "Dunmere": "from 7:00 to 15:30",
}
UNKNOWN = [
    ("code", "E19", "the rear brake is worn"),
    ("code", "E33", "the key is not registered"),
    ("code", "E50", "the cable is crushed"),
    ("code", "E95", "the charger is too warm"),
    ("part", "wheel lock", "HR-2618"),
    ("part", "mirror", "HR-7305"),
    ("part", "basket", "HR-5986"),
    ("town", "Oakley", "from 10:30 to 18:15"),
    ("town", "Redsands", "from 6:45 to 13:45"),
    ("town", "Fenby", "from 15:00 to 20:30"),
]
"""Facts that no row has, each as its kind, its thing and what a right answer contains."""

WORDINGS = {  # of the rows
    "code": [
        "What does error {} mean?",
        "My Heron shows {}. What should I do?",
        "The display says {} and the motor is off.",
        "{} appeared this morning, please help.",
        "How do I get rid of {}?",
        "Why do I see code {} on my bicycle?",
        "I get error {} after every start.",
        "Hello, a customer reports {}. What is the reason?",
        "Error {}, what now?",
        "Could you explain the code {}?",
    ],
    "part": [
        "What is the part number of the {}?",
        "I want to order a new {}. Which number is it?",
        "Which number does the {} have?",
        "My {} is broken. What do I order?",
        "Please send me the number for the {}.",
        "Under which number do you sell the {}?",
        "I lost the {} of my Heron. How do I order one?",
        "Part number for {}?",
        "Is there a spare {}, and what is its number?",
        "A customer needs a {}. What is the order number?",
    ],
    "town": [
        "When is the service point in {} open?",
        "What are the opening hours in {}?",
        "Until when can I come to your shop in {}?",
        "Is {} open in the morning?",
        "At what time do you open in {}?",
        "I want to bring my Heron to {}. When are you there?",
        "Opening hours {}?",
        "When does the workshop in {} close?",
        "Hello, when can I pick up my bicycle in {}?",
        "Please tell me the hours of {}.",
    ],
}
OTHER_WORDINGS = {  # of the questions that are counted
    "code": ["There is {} on the screen of my bike, what is wrong?", "Got {} while riding, any idea?"],
    "part": ["Which part number do I write on the order for the {}?", "Need to buy another {}, number please."],
    "town": ["What time can I visit you in {}?", "Planning a trip to the {} service point: hours?"],
}


def facts() -> list[tuple[str, str, str, str]]:
    """Return the kind of each fact, its thing, the answer, and what a right answer contains."""
    codes = [("code", code, f"{code} means that {cause}. {remedy}.", cause) for code, (cause, remedy) in CODES.items()]
    parts = [("part", part, f"The part number of the {part} is {number}.", number) for part, number in PARTS.items()]
    towns = [("town", town, f"The service point in {town} is open {hours}.", hours) for town, hours in TOWNS.items()]
    return codes + parts + towns


def other_question(number: int, kind: str, thing: str) -> str:
    """Return the question for a fact in one of the two wordings that no row has."""
    return OTHER_WORDINGS[kind][number % 2].format(thing)


def write_rows(name: str, rows: list[tuple[str, str]]) -> None:
    """Write questions and answers as a table."""
    with Path(name).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("question", "answer"), *rows])
    print(f"{name}: {len(rows)} rows")


def write_questions(name: str, asked: list[tuple[str, str, str]]) -> None:
    """Write questions in the other wordings, as `tsugiki eval --questions` reads them."""
    rows = [
        {"prompt": other_question(number, kind, thing), "expected": right, "mode": "contains"}
        for number, (kind, thing, right) in enumerate(asked)
    ]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"{name}: {len(rows)} questions")


def main() -> None:
    """Write the four files."""
    rows = [(wording.format(thing), answer) for kind, thing, answer, _ in facts() for wording in WORDINGS[kind]]
    random.Random(0).shuffle(rows)
    write_rows("support.csv", rows)
    others = [(other_question(i, kind, thing), answer) for i, (kind, thing, answer, _) in enumerate(facts())]
    write_rows("other.csv", others)
    write_questions("questions.jsonl", [(kind, thing, right) for kind, thing, _, right in facts()])
    write_questions("unknown.jsonl", UNKNOWN)


if __name__ == "__main__":
    main()
