"""Trains the demo checkpoint: a small GPT-2 of CPM's architecture on Song dynasty lyrics (ci), in two shards.

    python -m demo.train --corpus ../shared/corpora/song_ci.jsonl --output demo/song-ci

Writes ``<output>`` in the layout that CPM is released in (float16, DeepSpeed names, model parallel size 2), the
vocabulary beside it, and ``training.json`` with the loss on poems that the model never saw. The poems are in the public
domain. A poem is one document: the tune's name, a line feed, the lines each with a line feed, ``<eod>``.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2
from tqdm import tqdm
from transformers import GPT2Config, GPT2LMHeadModel

from convert.formats.megatron.layout import cpm_name, shard_spec_of
from convert.formats.megatron.sharding import split
from convert.formats.rank_files import TRACKER
from convert.formats.registry import open_checkpoint
from demo.corpus import SEED
from demo.corpus import split as split_corpus
from tokenization.cpm import CPMTokenizer, segment

# CPM's first ids: (piece, type, score); what follows is learned.
Piece = sentencepiece_model_pb2.ModelProto.SentencePiece
HEAD = [
    ("<unk>", Piece.UNKNOWN, 0.0),
    ("<s>", Piece.CONTROL, 0.0),
    ("</s>", Piece.CONTROL, 0.0),
    ("\u2583", Piece.NORMAL, -2.0),
    ("<sep>", Piece.CONTROL, 0.0),
    ("<pad>", Piece.CONTROL, 0.0),
    ("<mask>", Piece.CONTROL, 0.0),
    ("<eod>", Piece.NORMAL, 0.0),
]
FORM_WEIGHT = 5.0
"""How much more than which character it is counts in training whether a mark or an end comes: they are the tune.

It is a term of its own, which is least at the true probabilities. Greater weights of those tokens alone would make them
too probable everywhere: with 3, a quarter as many poems had the form of their tune.
"""
UNKNOWN = 0
UNUSED = -20.0
"""The score of the word mark alone: a word's first character and the mark are one piece wherever there is one."""


def make_vocabulary(texts: list[str], size: int, folder: Path) -> None:
    """A SentencePiece model whose special ids are CPM's and whose other pieces are one character each.

    They are the commonest characters, and the commonest first characters of words together with the word mark. So every
    character of most poems is one token, and where a line ends is where a position is: a small model learns that.
    """
    proto = _empty_model()
    normalizer = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
    count: Counter[str] = Counter()
    for text in texts:
        for word in segment(text).split(" "):
            normal = normalizer.normalize(word).removeprefix("\u2581")
            count.update(["\u2581" + normal[:1], *normal[1:]])
    # CPM's ids 8 to 10 are the word mark, the comma and the space; the rest goes by frequency.
    first = ["\u2581", ",", "\u2582"]
    reserved = {*first, *(head[0] for head in HEAD), "\u2581\u2583"}
    learned = sorted((piece for piece in count if piece not in reserved), key=lambda piece: (-count[piece], piece))
    total = sum(count.values())
    for piece in [*first, *learned[: size - len(HEAD) - len(first)]]:
        score = UNUSED if piece == "\u2581" else math.log((count[piece] or 0.5) / total)
        proto.pieces.add(piece=piece, type=Piece.NORMAL, score=score)
    proto.trainer_spec.vocab_size = len(proto.pieces)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chinese_vocab.model").write_bytes(proto.SerializeToString())
    vocabulary = {piece.piece: index for index, piece in enumerate(proto.pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary) + "\n", "utf-8")


def _empty_model() -> sentencepiece_model_pb2.ModelProto:
    """CPM's special pieces and the normalisation of CPM's vocabulary (nmt_nfkc), nothing else."""
    with tempfile.TemporaryDirectory() as temporary:
        prefix = Path(temporary, "vocabulary")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a"]), model_prefix=str(prefix), vocab_size=5, model_type="unigram",
            normalization_rule_name="nmt_nfkc", hard_vocab_limit=False, num_threads=1, minloglevel=2,
        )  # fmt: skip
        proto = sentencepiece_model_pb2.ModelProto.FromString(prefix.with_suffix(".model").read_bytes())
    del proto.pieces[:]
    for piece, kind, score in HEAD:
        proto.pieces.add(piece=piece, type=kind, score=score)
    proto.trainer_spec.pad_id = 5
    proto.trainer_spec.model_prefix = ""
    return proto


def tokens_of(text: str) -> int:
    """Of a poem whose characters are one token each: a line feed is two, and ``<eod>`` is one."""
    return len(text) + text.count("\n") + 1


def batches(samples: list[list[int]], tokens: int, rng: random.Random) -> list[list[list[int]]]:
    """Samples of like length together, at most ``tokens`` positions a batch, in random order."""
    order = sorted(samples, key=lambda sample: (len(sample), rng.random()))
    result: list[list[list[int]]] = []
    for sample in order:
        if result and len(sample) * (len(result[-1]) + 1) <= tokens:
            result[-1].append(sample)
        else:
            result.append([sample])
    rng.shuffle(result)
    return result


def tokens_of_form(tokenizer: CPMTokenizer) -> torch.Tensor:
    """The ids of marks, of a line's end and of the poem's, int64 ``[F]``."""
    return torch.tensor(sorted({*(i for mark in "。，、\n" for i in tokenizer.encode(mark)), tokenizer.eod_id}))


def loss_of(
    model: GPT2LMHeadModel, batch: list[list[int]], pad: int, form: torch.Tensor | None = None
) -> tuple[torch.Tensor, int]:
    """Mean negative log-likelihood (nats per token) of a batch, and the number of tokens that it is the mean of.

    Args:
        model: gives the logits.
        batch: token ids of texts.
        pad: the id that fills up shorter ones.
        form: with them, the loss has FORM_WEIGHT times more: the same of the choice between each of these tokens and
            all the others together.
    """
    width = max(map(len, batch))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in batch])
    labels = torch.tensor([row[1:] + [-100] * (width - len(row)) for row in batch]).flatten()
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.transformer(input_ids=ids[:, :-1]).last_hidden_state.flatten(0, 1)
        logits = model.lm_head(hidden[labels >= 0]).float()
    labels = labels[labels >= 0]
    log_total = logits.logsumexp(-1)
    loss = (log_total - logits.gather(1, labels[:, None])[:, 0]).mean()
    if form is not None:
        of_form = logits[:, form] - log_total[:, None]
        others = torch.log1p(-of_form.exp().sum(-1).clamp(max=1 - 1e-6))
        is_one = labels[:, None] == form
        loss = loss - FORM_WEIGHT * torch.where(is_one.any(-1), (of_form * is_one).sum(-1), others).mean()
    return loss, len(labels)


def held_out_loss(model: GPT2LMHeadModel, samples: list[list[int]], pad: int) -> float:
    model.eval()
    with torch.inference_mode():
        parts = [loss_of(model, batch, pad) for batch in batches(samples, 8192, random.Random(0))]
    model.train()
    return sum(float(loss) * count for loss, count in parts) / sum(count for _, count in parts)


def optimizers(model: GPT2LMHeadModel, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for everything else."""
    parts: dict[bool, list[torch.nn.Parameter]] = {True: [], False: []}
    for name, parameter in model.named_parameters():
        parts[".h." in name and parameter.ndim == 2].append(parameter)
    return [
        torch.optim.Muon(parts[True], lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(parts[False], lr=rate, weight_decay=0.1, betas=(0.9, 0.98)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=40, help="length of the training (default %(default)s)")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="DIR",
        help="go on from the weights of an earlier --output, whose vocabulary may be another",
    )
    parser.add_argument("--rate", type=float, default=1e-3, help="highest learning rate (default %(default)s)")
    parser.add_argument("--vocabulary-size", type=int, default=6000)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--hidden", type=int, default=208)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--positions", type=int, default=256)
    args = parser.parse_args()

    rng = random.Random(SEED)
    torch.manual_seed(SEED)
    held_out, texts = split_corpus(args.corpus, rng)
    if not (args.output / "tokenizer").exists():
        make_vocabulary(texts, args.vocabulary_size, args.output / "tokenizer")
    tokenizer = CPMTokenizer(args.output / "tokenizer")
    test, train = (
        [tokenizer.encode(text, append_eod=True) for text in tqdm(part, desc="encode")] for part in (held_out, texts)
    )
    # A poem with an unknown character would teach the model to write unknown characters, and one with characters of two
    # tokens would shift the positions of those behind.
    train = [ids for ids, text in zip(train, texts, strict=True) if UNKNOWN not in ids and len(ids) == tokens_of(text)]
    test, train = ([sample[: args.positions + 1] for sample in part] for part in (test, train))

    config = GPT2Config(
        vocab_size=tokenizer.vocab_size, n_positions=args.positions, n_embd=args.hidden, n_layer=args.layers,
        n_head=args.heads, activation_function="gelu_pytorch_tanh", layer_norm_epsilon=1e-5,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    step = read_shards(model, args.resume, args.heads, args.output / "tokenizer") if args.resume else 0
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {sum(map(len, train)):,} tokens, {len(train)} poems")
    form = tokens_of_form(tokenizer)
    both = optimizers(model, args.rate)
    start, first, epoch, loss = time.time(), step, 0, math.inf
    budget = args.minutes * 60
    while (elapsed := time.time() - start) < budget:
        epoch += 1
        for batch in (progress := tqdm(batches(train, 4096, rng), desc=f"epoch {epoch}")):
            elapsed = time.time() - start
            if elapsed > budget:
                break
            for group in (
                group for optimizer in both for group in optimizer.param_groups
            ):  # warm-up, then a cosine down to nothing at the end of the budget
                group["lr"] = (
                    args.rate * min(1, (step - first + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * elapsed / budget))
                )
            batch_loss, _ = loss_of(model, batch, tokenizer.pad_token_id, form)
            batch_loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            step += 1
            progress.set_postfix(loss=f"{batch_loss.item():.3f}")
        loss = held_out_loss(model, test, tokenizer.pad_token_id)
        print(
            f"epoch {epoch}, step {step}, {elapsed / 60:.1f} min: held-out loss {loss:.4f} nats per token", flush=True
        )
    figures = {
        "parameters": parameters,
        "steps": step,
        "training_poems": len(train),
        "training_tokens": sum(map(len, train)),
        "held_out_poems": len(test),
        "held_out_loss_nats_per_token": round(loss, 4),
        "held_out_loss_nats_per_character": round(loss * sum(len(s) - 1 for s in test) / sum(map(len, held_out)), 4),
        "held_out_perplexity_per_token": round(math.exp(loss), 2),
    }
    (args.output / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_shards(model, args.output, step)


def read_shards(model: GPT2LMHeadModel, root: Path, heads: int, folder: Path) -> int:
    """The inverse of ``write_shards``; gives the number of steps. Pieces keep their embeddings, new ones begin anew."""
    checkpoint = open_checkpoint(root, heads=heads)
    vocabulary, before = (
        json.loads((folder / "vocab.json").read_text("utf-8")) for folder in (folder, root / "tokenizer")
    )
    for name, tensor in model.transformer.state_dict().items():
        value = torch.from_numpy(checkpoint.read(name, np.dtype(np.float32)))
        if name == "wte.weight":
            for piece in vocabulary.keys() & before.keys():
                tensor[vocabulary[piece]] = value[before[piece]]
        else:
            tensor.copy_(value.T if value.ndim == 2 and not name.startswith("w") else value)
    return int(checkpoint.info.details["iteration"])


def write_shards(model: GPT2LMHeadModel, root: Path, step: int) -> None:
    """float16 shards of model parallel size 2, named as DeepSpeed names them."""
    folder = root / str(step)
    folder.mkdir(parents=True)
    ranks: list[dict[str, torch.Tensor]] = [{}, {}]
    for name, tensor in model.transformer.state_dict().items():
        # The linear layers of transformers' GPT-2 are [in, out], Megatron's [out, in].
        linear = tensor.ndim == 2 and not name.startswith("w")
        whole = (tensor.T if linear else tensor).half().numpy()
        for rank, shard in zip(ranks, split(whole, shard_spec_of(name), len(ranks)), strict=True):
            rank[cpm_name(name)] = torch.from_numpy(shard.copy())
    for number, tensors in enumerate(ranks):
        content = {"module": tensors, "iteration": step, "mp_world_size": len(ranks)}
        torch.save(content, folder / f"mp_rank_{number:02d}_model_states.pt")
    (root / TRACKER).write_text(str(step))


if __name__ == "__main__":
    main()
