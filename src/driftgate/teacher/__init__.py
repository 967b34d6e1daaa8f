"""Teachers: what they score, once per rollout batch."""
