"""`python -m finetune_cli`: runs `finetune`."""

from .main import main

main()
