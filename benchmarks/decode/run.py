"""Running it: files are made group by group, workers live as long as there is room, repeats are interleaved."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.convert import available_memory, files_in
from benchmarks.decode import weights
from benchmarks.decode.plan import LARGE, PROBE, Contender, Measure, groups, measures, wanted
from benchmarks.decode.process import Pythons, busy_core, versions, worker_command
from benchmarks.decode.results import Model, Sample
from benchmarks.process import EngineError, Process, Standstills
from tf_model.config import GPT2Config

_RESERVE = 1_500_000_000
"""Bytes of memory that are left to the rest of the machine."""
_LOADS = 3
_ANY, _ROWS, _DEEP = "any", "rows", "deep"
"""Processes of one engine. Our small models have another number of threads for several rows; of our large ones each
signature may keep a copy of the weights, so that those that go on from a state get a process of their own."""
_Place = tuple[Contender, str]
"""Whose process it is, and which one."""


class Run:
    """All measurements of one shape.

    Args:
        shape: its name.
        config: its sizes.
        folder: where checkpoint and files are made.
        pythons: of this project and of peers.
        threads: of each engine.
        repeat: rounds.
        steps: tokens after the first one in each measurement; 0 is what suits the size.
        measured: names of the measures wanted; empty is all.
        keep: leave the files.
    """

    def __init__(
        self, shape: str, config: GPT2Config, folder: Path, pythons: Pythons, threads: int, repeat: int, steps: int,
        measured: Sequence[str], keep: bool,
    ) -> None:  # fmt: skip
        self._config, self._folder, self._pythons, self._threads = config, folder, pythons, threads
        self._repeat, self._keep = repeat, keep
        self._measures = [m for m in measures(config, steps) if not measured or m.name in measured]
        self._living: dict[_Place, Process] = {}
        self._known: dict[_Place, int] = {}
        self._budget = 0.0
        self._standstills = Standstills()
        self.model = Model(shape, config)

    def run(self, chosen: Sequence[Contender]) -> Model:
        """Measures ``chosen``; what cannot be measured is left out, with a reason."""
        self._budget = available_memory() - _RESERVE
        there = [contender for contender in chosen if self._is_there(contender)]
        self._is_there(PROBE)
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / weights.INDEX).exists():
            self._say("writing random weights")
            weights.write(self._folder, self._config)
        plan = groups(there, self._config, self._budget)
        try:
            for number, (name, members) in enumerate(plan.items()):
                self._group(name, members)
                later = {member for others in list(plan.values())[number + 1 :] for member in others}
                for member in set(members) - later:
                    self._remove(member)
        finally:
            self._close_all()
        return self.model

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.model.shape}: {text}", file=sys.stderr, flush=True)

    def _is_there(self, contender: Contender) -> bool:
        try:
            self.model.versions.update(versions(contender, self._pythons))
        except EngineError as error:
            self._leave_out(contender, str(error))
            return False
        return True

    def _leave_out(self, contender: Contender, reason: str) -> None:
        self._say(f"{contender}: left out: {reason}")
        self.model.left_out[str(contender)] = reason

    def _files(self, contender: Contender) -> Path:
        return self._folder / str(contender).replace("/", "-")

    def _remove(self, contender: Contender) -> None:
        if not self._keep:
            shutil.rmtree(self._files(contender), ignore_errors=True)

    def _group(self, name: str, members: Sequence[Contender]) -> None:
        """Prepares all members, then measures them in turn."""
        prepared = [member for member in members if self._prepare(member)]
        fits = sum(self._need((member, _ANY)) for member in prepared) < self._budget
        self._say(f"group {name}: {', '.join(map(str, prepared))}{'' if fits else '; not all fit into memory'}")
        if fits:
            loads = min(self._repeat, _LOADS)
            for member, i in itertools.product(prepared, range(loads)):
                self._try(member, lambda: self._start(member, name))  # noqa: B023
                if i < loads - 1:
                    self._close((member, _ANY))
        for number in range(self._repeat):
            turn = [*prepared[number % len(prepared) :], *prepared[: number % len(prepared)]]
            if fits:
                cells = [(member, measure) for measure in self._measures for member in turn]
            else:
                cells = [(member, measure) for member in turn for measure in self._measures]
            for member, measure in cells:
                if member == PROBE and measure is self._measures[0]:
                    self._try(member, lambda: self._probe(name, number))  # noqa: B023
                elif member != PROBE and wanted(measure, member, name, self._config):
                    self._try(member, lambda: self._measure(member, measure, name, number))  # noqa: B023
            self._say(f"group {name}: round {number + 1} of {self._repeat}")
        self._close_all()

    def _try(self, contender: Contender, action: Callable[[], object]) -> None:
        """One engine's turn: where it fails it is left out, and the others go on."""
        if str(contender) in self.model.left_out:
            return
        try:
            action()
        except EngineError as error:
            self._leave_out(contender, str(error))
            for kind in (_ANY, _ROWS, _DEEP):
                self._close((contender, kind))

    def _prepare(self, contender: Contender) -> bool:
        folder = self._files(contender)
        if str(contender) in self.model.left_out:
            return False
        if not folder.exists():
            self._say(f"{contender}: files")
            process = Process(worker_command(contender, self._pythons), self._threads)
            try:
                process.call("prepare", weights=str(self._folder), folder=str(folder))
            except EngineError as error:
                self._leave_out(contender, str(error))
                shutil.rmtree(folder, ignore_errors=True)
                return False
            finally:
                process.close()
        self.model.disk[str(contender)] = sum(file.stat().st_size for file in files_in(folder))
        return True

    def _need(self, place: _Place) -> float:
        contender, kind = place
        copies = 1.5 * contender.weight_bytes(self._config) if kind == _DEEP else 0
        return self._known.get(place, contender.memory(self._config) + copies)

    def _start(self, contender: Contender, group: str, kind: str = _ANY) -> Process:
        """Its worker, loaded. Where there is no room, those used last go: the others' turn comes sooner."""
        place = contender, kind
        if str(contender) in self.model.left_out:
            raise EngineError(self.model.left_out[str(contender)])
        if place in self._living:
            self._living[place] = self._living.pop(place)
            return self._living[place]
        while self._living and sum(map(self._need, self._living)) + self._need(place) > self._budget:
            self._close(next(reversed(self._living)))
        process = self._living[place] = Process(worker_command(contender, self._pythons), self._threads)
        folder = self._files(contender)
        before = self._standstills.count
        answer = process.call(
            "load", weights=str(self._folder), folder=str(folder), threads=self._threads, several=kind == _ROWS
        )
        if self._standstills.count > before:
            self.model.standstills += 1
            self._close(place)
            return self._start(contender, group, kind)
        loaded = process.memory()[1]
        self.model.peaks_loaded[str(contender)] = max(loaded, self.model.peaks_loaded.get(str(contender), 0))
        if contender != PROBE:
            number = sum(s.measure == "load" and s.contender == str(contender) for s in self.model.samples)
            sample = Sample(group, str(contender), "load", number, answer["load"], answer["read"], 0, 0)
            self.model.samples.append(sample)
        return process

    def _close(self, place: _Place) -> None:
        process = self._living.pop(place, None)
        if process is not None:
            with contextlib.suppress(OSError):
                self._peak(place, process)
            process.close()

    def _close_all(self) -> None:
        for place in list(self._living):
            self._close(place)

    def _peak(self, place: _Place, process: Process) -> int:
        """Bytes that it has taken at most; how much room it needs follows from that."""
        most = process.memory()[1]
        self._known[place] = max(most, self._known.get(place, 0))
        return most

    def _probe(self, group: str, number: int) -> None:
        rate = self._start(PROBE, group).call("probe")["rate"]
        self.model.samples.append(Sample(group, str(PROBE), "probe", number, rate, 0, 0, 0))

    def _kind(self, contender: Contender, measure: Measure) -> str:
        if contender.engine == "ours" and self._config.parameter_count > LARGE:
            return _DEEP if measure.deep else _ANY
        return _ROWS if contender.engine == "ours" and measure.batch > 1 else _ANY

    def _measure(self, contender: Contender, measure: Measure, group: str, number: int) -> None:
        place = contender, self._kind(contender, measure)
        process = self._start(contender, group, place[1])
        options = {"batch": measure.batch, "prompt": measure.prompt, "ragged": measure.ragged, "deep": measure.deep}
        if measure.is_prefill and self._config.parameter_count > LARGE:  # takes long: anything short makes it warm
            if not process.warm:
                process.warm.add(measure.name)
                process.call("decode", batch=1, prompt=32, steps=1)
        elif measure.name not in process.warm:
            process.warm.add(measure.name)
            process.call("decode", **options, steps=measure.steps)
        while True:
            before = self._standstills.count
            with busy_core() if measure.busy else contextlib.nullcontext():
                answer = process.call("decode", **options, steps=measure.steps)
            if self._standstills.count == before:
                break
            self.model.standstills += 1
        if measure.name == "batch 1":
            self.model.tokens.setdefault(str(contender), answer["tokens"])
        if measure.name in ("batch 1", "busy"):  # other signatures and longer texts take more
            peaks = self.model.peaks
            peaks[str(contender)] = max(self._peak(place, process), peaks.get(str(contender), 0))
        sample = Sample(
            group, str(contender), measure.name, number, answer["rest"], answer["first"], measure.batch, measure.steps
        )
        self.model.samples.append(sample)
