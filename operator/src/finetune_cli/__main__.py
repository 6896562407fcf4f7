"""`python -m finetune_cli`: the same as `finetune`."""

from .main import main

main()
