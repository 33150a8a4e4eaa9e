"""The command ``gpt2-savedmodel``: every command of ``convert``, ``inference`` and ``training`` under one name."""
