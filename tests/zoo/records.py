"""Results of checks, one JSON line each, so that a rerun skips what passed with the same code."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field

from tests.zoo.cache import FOLDER, code_digest

CODE = code_digest()
RESULTS = FOLDER / "results.jsonl"


@dataclass(frozen=True)
class Record:
    """One check of one export; `message` says in a line why it failed, `numbers` what it counted."""

    check: str
    name: str
    passed: bool
    message: str = ""
    numbers: Mapping[str, int] = field(default_factory=dict)
    code: str = CODE


class Records:
    """The last result of every check with this code, by check and export."""

    def __init__(self) -> None:
        lines = RESULTS.read_text().splitlines() if RESULTS.exists() else []
        known = (Record(**json.loads(line)) for line in lines)
        self._by_key = {(r.check, r.name): r for r in known if r.code == CODE}

    def passed(self, check: str, name: str) -> bool:
        record = self._by_key.get((check, name))
        return record is not None and record.passed

    def add(self, record: Record) -> None:
        self._by_key[record.check, record.name] = record
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a") as file:
            file.write(json.dumps(asdict(record)) + "\n")

    def of(self, check: str, names: Iterable[str]) -> list[Record]:
        return [r for name in names if (r := self._by_key.get((check, name)))]

    def total(self, check: str, names: Iterable[str]) -> Counter[str]:
        """The sums of what a check counted over some exports."""
        sums: Counter[str] = Counter()
        for record in self.of(check, names):
            sums.update(record.numbers)
        return sums

    def table(self, names: list[str]) -> list[str]:
        """A line for each check, and one for each export that failed with its first reason."""
        checks = sorted({check for check, name in self._by_key if name in names})
        lines = [self._summary(check, names) for check in checks]
        for name in names:
            failed = [r for check in checks for r in self.of(check, [name]) if not r.passed]
            loading = [r for r in failed if r.check == "loading"]
            lines += [f"  {name}: {r.check}: {r.message}" for r in loading or failed]
        return lines

    def _summary(self, check: str, names: list[str]) -> str:
        records = self.of(check, names)
        numbers = "  ".join(f"{k} {v}" for k, v in self.total(check, names).items())
        return f"{check:<12} {sum(r.passed for r in records):>4} of {len(records):<4} {numbers}"
