"""The program `alchemy`: looks at runs and speaks with them, outside of any pytest session.

    main.py         the parser, and what becomes of errors
    runs.py         which run is meant
    printing.py     what a terminal may show
    trouble.py      exit statuses, and the errors a user can cause

Each subcommand is a module of its own with a function `add(subparsers)`, listed in `main.SUBCOMMANDS`. What
it needs beyond the agent and the standard library it imports when it runs, so that the others start at once.
"""
