"""The evaluation job: `__main__` is the command, `material` what is scored, `job` what is made of it, `judges` who judges."""
