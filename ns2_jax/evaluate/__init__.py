"""The evaluation job: `__main__` is the command, `material` what is scored, `job` how."""
