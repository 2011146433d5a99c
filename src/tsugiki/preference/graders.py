"""Graders of OpenAI's reinforcement fine-tuning as rules: those that run no code and ask no other model.

    string_check       1 if two texts are equal (eq), if they differ (ne), or if the first one contains the second one
                       (like; ilike ignores case); otherwise 0
    text_similarity    how similar two texts are, from 0 to 1: `similarity`
    multi              a formula of the scores of several of these, such as `0.5 * same + near ^ 2`

The texts are templates. In them, {{item.NAME}} is a field of the prompt's row, and {{sample.output_text}} the answer.
"""

import ast
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from tsugiki.data.records import folded
from tsugiki.errors import TsugikiError
from tsugiki.io.validation import describe_problems
from tsugiki.preference.rule_process import number_or_reason
from tsugiki.preference.rule_programs import Result

_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}")
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")
"""A word; in Japanese and Chinese, which have no spaces, a character."""
_OPERATORS: dict[type[ast.AST], Callable[..., float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.USub: operator.neg,
}
_FUNCTIONS: dict[str, Callable[..., float]] = {
    one.__name__: one for one in (min, max, abs, math.floor, math.ceil, math.exp, math.sqrt, math.log)
}


class _Comparison(BaseModel):
    """A grader of two texts, which are templates."""

    input: str
    reference: str


class StringCheck(_Comparison):
    """Whether two texts are equal, or one contains the other."""

    type: Literal["string_check"]
    operation: Literal["eq", "ne", "like", "ilike"]


class TextSimilarity(_Comparison):
    """How similar two texts are."""

    type: Literal["text_similarity"]
    evaluation_metric: Literal["fuzzy_match", "rouge_1", "rouge_2", "rouge_3", "rouge_4", "rouge_5", "rouge_l"]


_Single: TypeAlias = Annotated[StringCheck | TextSimilarity, Field(discriminator="type")]


class Multi(BaseModel):
    """A formula of the scores of graders by their names."""

    type: Literal["multi"]
    graders: dict[str, _Single]
    calculate_output: Annotated[str, Field(max_length=300)]


Grader: TypeAlias = StringCheck | TextSimilarity | Multi
_GRADER: TypeAdapter[Grader] = TypeAdapter(Annotated[Grader, Field(discriminator="type")])


def read_grader(text: str) -> Callable[[Mapping[str, Any], str], Result]:
    """Return the function that scores an answer, given its row's fields, by a grader in JSON.

    Raises:
        TsugikiError: the text is no grader, or one that is refused.
    """
    try:
        grader = _GRADER.validate_json(text)
    except ValidationError as error:
        raise TsugikiError(
            "the grader cannot be used: {problems} (no code of a grader is run, and no other model is asked)",
            problems=describe_problems(error, ()),
        ) from error

    def score(fields: Mapping[str, Any], answer: str) -> Result:
        try:
            return number_or_reason(_score(grader, fields, answer))
        except (ArithmeticError, LookupError, SyntaxError, TypeError, ValueError) as error:
            return f"{type(error).__name__}: {error}"

    return score


def _score(grader: Grader, fields: Mapping[str, Any], answer: str) -> float:
    if isinstance(grader, Multi):
        formula = ast.parse(grader.calculate_output.strip().replace("^", "**"), mode="eval")
        return _value_of(formula.body, {name: _score(one, fields, answer) for name, one in grader.graders.items()})
    text, other = (_filled(template, fields, answer) for template in (grader.input, grader.reference))
    if isinstance(grader, TextSimilarity):
        return similarity(grader.evaluation_metric, text, other)
    folded_part = other.casefold() in text.casefold()
    return {"eq": text == other, "ne": text != other, "like": other in text, "ilike": folded_part}[grader.operation]


def similarity(metric: str, text: str, other: str) -> float:
    """Return the F1 score of two texts: twice the size of what they share, divided by the sum of their sizes.

    They share, for `fuzzy_match` (rapidfuzz's ratio), the longest common subsequence of characters; for `rouge_l` that
    of words; for `rouge_1` to `rouge_5` n-grams of words. Words are compared without case and width.
    """
    is_fuzzy, number = metric == "fuzzy_match", metric[-1]
    texts = [[*one] if is_fuzzy else _WORD.findall(folded(one)) for one in (text, other)]
    if number.isdigit():
        counts = [Counter(zip(*(words[at:] for at in range(int(number))), strict=False)) for words in texts]
        shared, size = (counts[0] & counts[1]).total(), sum(map(Counter.total, counts))
    else:
        shared, size = _common_length(*texts), sum(map(len, texts))
    return 2 * shared / size if size else 0.0


def _common_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, with one bit for each element of `first` (Hyyrö 2004)."""
    places: Counter[str] = Counter()
    for place, part in enumerate(first):
        places[part] |= 1 << place
    row = whole = (1 << len(first)) - 1
    for part in second:
        matched = row & places[part]
        row = (row + matched | row - matched) & whole
    return len(first) - row.bit_count()


def _filled(template: str, fields: Mapping[str, Any], answer: str) -> str:
    """Return a template with its values. An unknown name raises a KeyError or a TypeError."""
    names: Any = {"item": fields, "sample": {"output_text": answer}}

    def value(found: re.Match[str]) -> str:
        content = reduce(operator.getitem, found[1].split("."), names)
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)

    return _TEMPLATE.sub(value, template)


def _value_of(node: ast.AST, scores: Mapping[str, float]) -> float:
    """Return the value of a part of a formula. Anything but a formula raises a SyntaxError."""
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)  # a power of whole numbers could take for ever
        case ast.Name() if node.id in scores:
            return scores[node.id]
        case ast.BinOp() if apply := _OPERATORS.get(type(node.op)):
            return apply(_value_of(node.left, scores), _value_of(node.right, scores))
        case ast.UnaryOp() if apply := _OPERATORS.get(type(node.op)):
            return apply(_value_of(node.operand, scores))
        case ast.Call(func=ast.Name(id=name), keywords=[]) if name in _FUNCTIONS:
            return float(_FUNCTIONS[name](*(_value_of(one, scores) for one in node.args)))
    raise SyntaxError(f"a formula has numbers, + - * / ^, {', '.join([*scores, *_FUNCTIONS])}")
