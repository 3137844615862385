"""From the words of a request (names, module paths, globs, indices, `op:Conv`) to layers. Pure."""

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import cached_property

from service.engine.layers.modules import Modules
from service.errors import InvalidParameter, LayerNotFound
from service.values import Layer

MAX_TERMS = 4096
# A glob is held against every name, so there are fewer of them.
MAX_GLOBS = 64
MAX_TERM_LENGTH = 1024
SUGGESTIONS = 5
# Similarity is quadratic in the lengths.
LONGEST_TERM_COMPARED = 128
HOW_TO_FIND_OUT = "list_layers shows every layer"


class LayerTable:
    """A model's layers at one input size, found by name in one step."""

    def __init__(
        self,
        layers: Sequence[Layer],
        outputs: Sequence[str],
        inputs: Sequence[Layer] = (),
        modules: Modules = Modules(),  # noqa: B008  # It does not change.
    ) -> None:
        self.layers = tuple(layers)
        self.modules = modules
        self.by_name = {layer.name: layer for layer in (*inputs, *layers)}
        self.outputs = tuple(name for name in outputs if name in self.by_name)
        self._most_commas = max((name.count(",") for name in self.by_name), default=0)

    @cached_property
    def largest_bytes(self) -> int:
        """Bytes of one image's largest map, of those whose shape is known."""
        return max(map(held_bytes, self.layers), default=0)

    def select(self, words: Iterable[str]) -> tuple[Layer, ...]:
        """The layers that the words mean, each once, in graph order.

        The graph's input stands first where it was asked for by its own name.

        Raises:
            LayerNotFound: a word means nothing; `suggestions` holds the nearest names.
            InvalidParameter: a word is ill-formed.
        """
        words = list(words)
        # Counted before anything is split: splitting a long text costs more than refusing it.
        _refuse_more(len(words) + sum(word.count(",") for word in words), MAX_TERMS, "terms")
        terms = [term for word in words for term in self._terms(word)]
        if not terms:
            raise InvalidParameter(f"layers is empty; {HOW_TO_FIND_OUT}", parameter="layers")
        _refuse_more(sum("*" in term or "?" in term for term in terms), MAX_GLOBS, "globs")
        _refuse_more(max(map(len, terms)), MAX_TERM_LENGTH, "characters in one term")
        chosen = {layer.name: layer for term in terms for layer in self._meant(term)}
        return tuple(sorted(chosen.values(), key=lambda layer: layer.index))

    def named(self, words: Iterable[str]) -> frozenset[str]:
        """The names of the layers that words name by themselves, and not as some among others."""
        terms = [term for word in words for term in self._terms(word)]
        by_path = (layer.name for term in terms for layer in self.returned_by(term))
        return frozenset(term for term in terms if term in self.by_name).union(by_path)

    def _terms(self, word: str) -> list[str]:
        """Split at commas, but keep names that hold commas whole: the longest exact name wins."""
        if word in self.by_name:
            return [word]
        pieces = word.split(",")
        terms = []
        while pieces:
            taken = self._longest_name(pieces)
            terms.append(",".join(pieces[:taken]))
            pieces = pieces[taken:]
        return [term for term in terms if term]

    def _longest_name(self, pieces: Sequence[str]) -> int:
        for taken in range(min(len(pieces), self._most_commas + 1), 1, -1):
            if ",".join(pieces[:taken]) in self.by_name:
                return taken
        return 1

    def _meant(self, term: str) -> Sequence[Layer]:
        if term in self.by_name:
            return [self.by_name[term]]
        found = self._keyword(term) if term in KEYWORDS or ":" in term else None
        if found is None:
            found = self.returned_by(term) or (self._glob(term) if "*" in term or "?" in term else [])
        if not found:
            raise self._not_found(term)
        return found

    def _keyword(self, term: str) -> Sequence[Layer] | None:
        """None where the part before the colon is no keyword: then the term is a name or a glob."""
        word, _, argument = term.partition(":")
        reading = KEYWORDS.get(term) or ARGUMENT_KEYWORDS.get(word + ":")
        return None if reading is None else reading(self, argument)

    def _glob(self, term: str) -> Sequence[Layer]:
        pattern = _pattern(term)
        return [layer for layer in self.layers if pattern.match(layer.name)]

    def returned_by(self, path: str) -> Sequence[Layer]:
        """The layer that a module returned; none where there is no such module."""
        name = self.modules.output_of(path)
        return [self.by_name[name]] if name in self.by_name else []

    def inside(self, term: str) -> Sequence[Layer]:
        """The layers that were made inside of modules whose paths match a glob."""
        names = self.modules.inside(_pattern(term))
        return [layer for layer in self.layers if layer.name in names]

    def nearest(self, term: str) -> list[str]:
        """The names that are most like a term."""
        if len(term) > LONGEST_TERM_COMPARED:
            return []
        return difflib.get_close_matches(term, self.by_name, n=SUGGESTIONS, cutoff=0.4)

    def _nearest_words(self, term: str) -> list[str]:
        """The names and module paths that are most like a term."""
        if len(term) > LONGEST_TERM_COMPARED:
            return []
        words = dict.fromkeys((*self.modules.outputs, *self.by_name))
        return difflib.get_close_matches(term, words, n=SUGGESTIONS, cutoff=0.4)

    def _not_found(self, term: str) -> LayerNotFound:
        if term.partition(":")[0] in ("stages", "stage", "features", "feature"):
            return LayerNotFound(self._no_stage(term), suggestions=list(self.outputs[:SUGGESTIONS]))
        path = term.removeprefix("module:")
        near = self._nearest_words(path)
        reason = self.modules.reason(path)
        hint = f"; did you mean {', '.join(map(repr, near))}?" if near else ""
        if reason:
            more = "" if path in self.modules.reasons else hint
            return LayerNotFound(f"the module {path!r} has no layer: {reason}{more}", suggestions=near)
        return LayerNotFound(f"no layer {term!r}{hint} ({HOW_TO_FIND_OUT})", suggestions=near)

    def _no_stage(self, term: str) -> str:
        """Why a network has no such stage or feature: there are fewer, or its reductions are not known."""
        kind = "features" if term.startswith("feature") else "stages"
        count = len(self.features() if kind == "features" else self.stages())
        if count:
            return f"no layer {term!r}: this network has {count} {kind}, counted from 0 ({HOW_TO_FIND_OUT})"
        return (
            f"no layer {term!r}: the reductions of this network are not known throughout, so that its {kind} "
            f"are not either; name layers, or ask for outputs ({HOW_TO_FIND_OUT})"
        )

    def features(self) -> list[Layer]:
        """What the network's blocks give at each reduction, from the finest on."""
        return sorted((x for x in self.layers if x.feature is not None), key=lambda x: x.feature or 0)

    def stages(self) -> list[Layer]:
        """The layers that end a stage, in the stages' order."""
        return sorted((x for x in self.layers if x.stage is not None), key=lambda x: x.stage or 0)


def _refuse_more(actual: int, limit: int, what: str) -> None:
    if actual > limit:
        detail = f"layers holds {actual} {what}; at most {limit} are taken"
        raise InvalidParameter(detail, parameter="layers", limit=limit, actual=actual)


def _all(table: LayerTable, _: str) -> Sequence[Layer]:
    return table.layers


def _stages(table: LayerTable, _: str) -> Sequence[Layer]:
    return table.stages()


def _features(table: LayerTable, _: str) -> Sequence[Layer]:
    return table.features()


def _outputs(table: LayerTable, _: str) -> Sequence[Layer]:
    return [table.by_name[name] for name in table.outputs]


def _by_op(table: LayerTable, op: str) -> Sequence[Layer]:
    return [layer for layer in table.layers if layer.op == op]


def _by_reduction(table: LayerTable, argument: str) -> Sequence[Layer]:
    wanted = {Fraction(_number(argument, "reduction:16"))}
    return [layer for layer in table.layers if layer.reduction and set(layer.reduction) == wanted]


def _by_module(table: LayerTable, argument: str) -> Sequence[Layer]:
    return table.inside(argument) if "*" in argument or "?" in argument else table.returned_by(argument)


def _by_index(table: LayerTable, argument: str) -> Sequence[Layer]:
    return _ranged(table.layers, argument, "index:12, index:-1 or index:10..20")


def _by_stage(table: LayerTable, argument: str) -> Sequence[Layer]:
    return _ranged(table.stages(), argument, "stage:3, stage:-1 or stage:0..2")


def _by_feature(table: LayerTable, argument: str) -> Sequence[Layer]:
    return _ranged(table.features(), argument, "feature:2, feature:-1 or feature:0..2")


KEYWORDS: dict[str, Callable[[LayerTable, str], Sequence[Layer]]] = {
    "all": _all,
    "stages": _stages,
    "features": _features,
    "outputs": _outputs,
}
ARGUMENT_KEYWORDS: dict[str, Callable[[LayerTable, str], Sequence[Layer]]] = {
    "index:": _by_index,
    "module:": _by_module,
    "op:": _by_op,
    "stage:": _by_stage,
    "feature:": _by_feature,
    "reduction:": _by_reduction,
}


def _ranged(layers: Sequence[Layer], argument: str, example: str) -> Sequence[Layer]:
    """One position or an inclusive range `a..b`; negative positions count from the end."""
    first, dots, last = argument.partition("..")
    start = _position(_number(first, example), len(layers))
    stop = _position(_number(last, example), len(layers)) if dots else start
    if not (0 <= start < len(layers) and 0 <= stop < len(layers)):
        return []
    return layers[start : stop + 1]


def _pattern(glob: str) -> re.Pattern[str]:
    # `[` is no special character here; fnmatch's regex for `*` does not backtrack.
    return re.compile(fnmatch.translate(glob.replace("[", "[[]")))


def _position(number: int, length: int) -> int:
    return number + length if number < 0 else number


def _number(text: str, example: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,9}", text):
        raise InvalidParameter(f"{text!r} is not a whole number; write {example}", parameter="layers")
    return int(text)


def held_bytes(layer: Layer) -> int:
    """Of a layer's map as it is described, with all rows of a batch; 0 where that is unknown."""
    rows = layer.shape[0] if layer.batch_axis == 0 and layer.shape else 1
    return (rows or 0) * (layer.bytes_per_image or 0)
