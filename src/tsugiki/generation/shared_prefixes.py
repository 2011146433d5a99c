"""Which requests use the keys and values of others' prompts: the rules of the engine for the prefix cache."""

from contextlib import suppress

from tsugiki.generation.batch import Row
from tsugiki.generation.prefixes import Prefix, PrefixCache, common_tokens
from tsugiki.generation.rows import CachedRows


class SharedPrefixes:
    """Prefixes of prompts that rows share."""

    def __init__(self, most_bytes: int) -> None:
        """Create it.

        Args:
            most_bytes: of keys and values; 0: nothing is shared.
        """
        self._cache = PrefixCache(most_bytes)

    @property
    def bytes(self) -> int:
        """The size of the keys and values that are kept."""
        return self._cache.bytes

    def shares(self, row: Row) -> bool:
        """Return whether a row may use keys and values of other requests, and leave its own to them.

        It may not if they depend on the length of the row ("alone"), or after a failure.
        """
        request = row.request
        can = request.batch_mode != "alone" and not row.separate
        return can and request.content is not None and self._cache.most_bytes > 0

    def find(self, row: Row) -> Prefix:
        """Return the part of a row that need not be computed. Its last token is none of it: its logits are needed."""
        if not self._uses(row):
            return Prefix()
        return self._cache.find(row.request.content or "", row.tokens[:-1])

    def keep(self, row: Row, cached: CachedRows, index: int) -> None:
        """Keep the keys and values of a row, which has this index in `cached`, for other requests."""
        if self.shares(row):
            tokens = row.tokens[: int(cached.mask[index].sum())]
            with suppress(RuntimeError):  # there is not enough memory
                self._cache.keep(row.request.content or "", tokens, cached, index)

    def worth_waiting(self, row: Row, first: Row, known: Prefix, tokens: int) -> bool:
        """Return whether the prompt of another row, which is being computed, would spare this row many tokens.

        Args:
            row: a row that waits.
            first: the row whose prompt is being computed.
            known: the prefix of `row` that is in the cache now.
            tokens: how many tokens are many.
        """
        if not (self.shares(first) and self._uses(row)):
            return False
        same = first.request.content == row.request.content
        return same and common_tokens(first.tokens, row.tokens) - known.tokens >= tokens

    def _uses(self, row: Row) -> bool:
        """Return whether a row may use other rows' keys and values: not if it needs the logits of its whole prompt."""
        return self.shares(row) and (row.scored or not row.request.prompt_logprobs)
