"""Fully sharded data parallelism (torch's FSDP2): student and teacher are divided among the processes."""
