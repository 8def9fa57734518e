"""Table 2 of the paper on the tiny world: one teacher, distilled by ADD and by LCM, beside its own fast samplers."""
