"""What `plan` computes with: layout, memory, messages and time of a run, from shapes alone."""
