"""Many results for many prompts: what was made for each, in an order that an interrupted run can take up again."""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inference.jsonl import Job
from inference.prompt_files import PromptValue
from inference.request import EncodedPrompt, TextConfig
from inference.results import GeneratedText
from inference.text_generator import TextGenerator


@dataclasses.dataclass(frozen=True)
class JobResult:
    """What was made for a job.

    Attributes:
        job: what was asked for.
        result: the text.
        seed: what it was drawn with; None for beam search.
    """

    job: Job
    result: GeneratedText
    seed: int | None

    def to_record(self) -> dict[str, Any]:
        """Return the line of a file of results."""
        result = {name: value for name, value in dataclasses.asdict(self.result).items() if value is not None}
        del result["prompt"]
        return {"prompt": self.job.prompt, **self.job.fields, "number": self.job.number, "seed": self.seed, **result}


def generate_jobs(
    generator: TextGenerator,
    jobs: Sequence[Job],
    prompts: Mapping[PromptValue, EncodedPrompt],
    config: TextConfig,
    *,
    batch_size: int,
) -> Iterator[JobResult]:
    """Yield the result of each job as soon as its batch is done; a result does not depend on which jobs are given.

    Args:
        jobs: as ``expand_jobs`` makes them with the ``num_return_sequences`` of ``config``; some may be left out.
        prompts: the encoded prompt of every job, by what it is.

    Raises:
        OptionError: no room for beam search.
        ModelError: TensorFlow cannot do it, for want of memory for example.
    """
    if config.beams:
        return _beam_search(generator, jobs, prompts, config)
    return _sample(generator, jobs, prompts, config, batch_size)


def _sample(
    generator: TextGenerator,
    jobs: Sequence[Job],
    prompts: Mapping[PromptValue, EncodedPrompt],
    config: TextConfig,
    batch_size: int,
) -> Iterator[JobResult]:
    """Draw each result by itself, with the seed of its number."""
    first = config.values["seed"]
    values = {**config.values, "num_return_sequences": 1}
    for start in range(0, len(jobs), batch_size):
        some = jobs[start : start + batch_size]
        seeds = tuple(secrets.randbits(63) if first < 0 else (first + job.number) % 2**63 for job in some)
        of_batch = dataclasses.replace(config, values=values, seeds=seeds)
        encoded = [prompts[job.prompt] for job in some]
        results = generator.generate_encoded(encoded, of_batch, batch_size=batch_size)
        yield from map(JobResult, some, results, seeds)


def _beam_search(
    generator: TextGenerator,
    jobs: Sequence[Job],
    prompts: Mapping[PromptValue, EncodedPrompt],
    config: TextConfig,
) -> Iterator[JobResult]:
    """Find all results of a prompt together, and keep those that are asked for."""
    each = config.values["num_return_sequences"]
    for (prompt, _), group in itertools.groupby(jobs, lambda job: (job.prompt, job.number // each)):
        results = generator.generate_encoded([prompts[prompt]], config)
        for job in group:
            yield JobResult(job, results[job.number % each], None)
