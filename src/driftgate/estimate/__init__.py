"""What a run would need: tokens, memory and time on one GPU, computed before anything is started."""
