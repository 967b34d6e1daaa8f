"""What a study or a run would take: memory, time and disk, before anything is run."""
