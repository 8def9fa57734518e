"""Cost of ADD at full size: FLOPs and memory counted on any machine, speed measured on the present one."""
