"""Results as they are printed: the whole text, or one short line."""

from __future__ import annotations

from inference import Choice, CorpusScore, GeneratedText, Score
from tests.helpers.text_models import TextModel

LONG = GeneratedText("浣溪沙\n", "一曲新词酒一杯，" * 50, (1, 2, 3), (-1.0, -1.0, -1.0), "length")


def test_a_result_as_text_is_prompt_and_continuation() -> None:
    assert str(LONG) == LONG.full_text == "浣溪沙\n" + "一曲新词酒一杯，" * 50


def test_representations_are_one_short_line(bert: TextModel) -> None:
    score = Score("一曲\n" * 100, (1, 2), (None, -1.0))
    choice = Choice(1, "体育" * 100, (-2.0, -1.0))
    assert repr(LONG) == "GeneratedText('浣溪沙\\n" + ("一曲新词酒一杯，" * 5)[:36] + "…', 3 tokens, length)"
    assert repr(score).endswith("2 tokens, perplexity 2.718)")
    assert str(choice) == "体育" * 100
    for value in (LONG, score, choice, bert.generator, CorpusScore.of([score])):
        assert "\n" not in repr(value)
        assert len(repr(value)) < 130


def test_scores_of_texts_add_up() -> None:
    scores = [Score("一曲", (1, 2), (None, -3.0)), Score("新词酒", (3, 4, 5), (None, -1.0, -2.0))]
    total = CorpusScore.of(scores)
    assert (total.documents, total.tokens, total.characters, total.total) == (2, 3, 5, -6.0)
    assert total.to_dict()["perplexity"] == total.perplexity
    assert round(total.bits_per_character, 3) == 1.731
    assert CorpusScore.of([Score("一", (1,), (None,))]).to_dict()["perplexity"] is None
