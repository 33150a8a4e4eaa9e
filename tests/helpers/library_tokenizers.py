"""Small tokenizers of the ``tokenizers`` library, of kinds that are neither GPT-2's nor BERT's."""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

CHARACTERS = "春花秋月何时了往事知多少小楼昨夜又东风abcdefghij,，。!"


def word_level_of_characters() -> Tokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *dict.fromkeys(CHARACTERS)]
    made = Tokenizer(models.WordLevel({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")
    made.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return made


def word_level_of_words() -> Tokenizer:
    words = ["<unk>", "<eos>", "春花", "秋月", "何时", "了", "hello", "world", "<line>"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken("<eos>", special=True), AddedToken("<line>", special=True, lstrip=True)])
    return made


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("▁", -2.0), ("▁小楼", -3.0), ("东风", -3.5), ("hello", -4.0)]
    pieces += [(character, -5.0 - n / 10) for n, character in enumerate(dict.fromkeys(CHARACTERS))]
    made = Tokenizer(models.Unigram(pieces, unk_id=0))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    made.add_special_tokens(["</s>"])
    return made


def byte_fallback() -> Tokenizer:
    """As Llama's: spaces are pieces, unknown characters their bytes, a token in front of every text."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"春花秋月helowrd"]
    names += ["he", "ll", "hell", "hello", "▁hello"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello")]
    ids = {piece: index for index, piece in enumerate(names)}
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    made.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    return made


def digits_apart() -> Tokenizer:
    """Byte-level as later models than GPT-2 have it: digits are split, ``<|im_end|>`` ends a turn."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = [*symbols, "he", "ll", "hell", "<|endoftext|>", "<|im_end|>"]
    merges = [("h", "e"), ("l", "l"), ("he", "ll")]
    made = Tokenizer(models.BPE({piece: index for index, piece in enumerate(names)}, merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<|endoftext|>", "<|im_end|>"])
    return made


def end_of_word() -> Tokenizer:
    """As GPT-1: the last piece of a word says so."""
    names = [
        "<unk>",
        *dict.fromkeys(CHARACTERS),
        *(f"{letter}</w>" for letter in dict.fromkeys(CHARACTERS)),
        "ab",
        "abc</w>",
    ]
    merges = [("a", "b"), ("ab", "c</w>")]
    ids = {piece: index for index, piece in enumerate(names)}
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", end_of_word_suffix="</w>"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.BPEDecoder("</w>")
    return made


def other_word_pieces() -> Tokenizer:
    names = ["<pad>", "<unk>", "<s>", "</s>", "春", "花", "hello", "@@s", "a", "@@b"]
    ids = {piece: index for index, piece in enumerate(names)}
    made = Tokenizer(models.WordPiece(ids, unk_token="<unk>", continuing_subword_prefix="@@"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece("@@")
    made.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 2), ("</s>", 3)])
    made.add_special_tokens(["<pad>", "<unk>", "<s>", "</s>"])
    return made


LIBRARY_TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "WordLevel of characters": word_level_of_characters,
    "WordLevel of words": word_level_of_words,
    "Unigram": unigram,
    "BPE with byte fallback": byte_fallback,
    "BPE of bytes, digits apart": digits_apart,
    "BPE with ends of words": end_of_word,
    "WordPiece of other marks": other_word_pieces,
}
