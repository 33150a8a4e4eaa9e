"""The command ``gpt2-savedmodel``: every command of ``convert`` and ``inference`` under one name."""
