"""The dispatcher: collects experiments as pytest items, submits, watches, judges and reports them."""
