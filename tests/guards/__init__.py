"""Guards against accidental change: plans, output of the command line, and jobs of an earlier version.

plans.json        two hashes for each of 2,000 sampled (job, observation) pairs          test_plans.py
cli/              what `finetune` prints for 60 inputs                                   test_cli.py
previous-version/ objects of a job that an earlier version started                       test_previous_version.py

All of it is recorded data. Only product.py imports the product, so a refactoring that moves or renames modules
adjusts that file and nothing else here. After a deliberate change, `GUARDS=rewrite pytest tests/guards` records the
plans and outputs again; read the diff. previous-version/ is never rewritten: clusters hold such objects.
"""
