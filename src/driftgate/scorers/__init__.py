"""Scorers: what the student, the teacher and the initial student say of the tokens of a rollout batch."""
