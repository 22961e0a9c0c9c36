"""The documents of every task: where their files are, what they hold, their hidden tests."""
