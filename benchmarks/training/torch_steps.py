"""A step of transformers and PyTorch, as ``run_clm.py`` makes it, LoRA by peft."""

from __future__ import annotations

import torch
import transformers

from benchmarks.training.plan import BFLOAT16, Trainer
from tf_model.config import GPT2Config


class TorchSteps:
    """See ``worker.Steps``. Dropout is where this project has it: not on attention's probabilities."""

    tracing = 0.0

    def __init__(self, trainer: Trainer, config: GPT2Config, size: tuple[int, int], threads: int) -> None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        sizes = {name: getattr(config, name) for name in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, attn_pdrop=0.0, use_cache=False))
        if trainer.rank:
            import peft

            targets = ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]
            model = peft.get_peft_model(
                model, peft.LoraConfig(r=trainer.rank, lora_alpha=16, target_modules=targets, fan_in_fan_out=True)
            )
        self._model = model.train()
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in self._trained if p.ndim > 1], "weight_decay": 0.01},
            {"params": [p for p in self._trained if p.ndim == 1], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=1e-5, fused=trainer.fused or None)
        self._rows = torch.randint(0, config.vocab_size, size)
        self._autocast = trainer.products == BFLOAT16

    def step(self) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=self._autocast):
            loss = self._model(input_ids=self._rows, labels=self._rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())
